import sys

import numpy as np
import pytest

from diffsda_jax.evals.alignment import box_map, face_maps, fit_similarity, move_points, warp
from diffsda_jax.evals.network_options import DEFAULTS, NetworkOptions, network_defaults
from diffsda_jax.evals.networks import (
    CallableNetwork,
    FrameNetwork,
    OnnxNetwork,
    load_network,
    load_networks,
)

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
PLAIN = {"mean": (0.0,) * 3, "std": (255.0,) * 3}  # values of the input are from 0 to 1


@pytest.fixture
def write(tmp_path):
    """Writes a network of a few nodes and returns its path."""

    def write(nodes, shape, outputs, constants=(), number_type=onnx.TensorProto.FLOAT):
        make = onnx.helper
        graph = make.make_graph(
            [make.make_node(*node[:3], **(node[3] if len(node) > 3 else {})) for node in nodes],
            "net",
            [make.make_tensor_value_info("image", number_type, shape)],
            [make.make_tensor_value_info(name, number_type, None) for name in outputs],
            [onnx.numpy_helper.from_array(value, name) for name, value in dict(constants).items()],
        )
        model = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=8)
        path = tmp_path / f"net{len(list(tmp_path.iterdir()))}.onnx"
        onnx.save(model, path)
        return str(path)

    return write


@pytest.fixture
def mean_color(write):
    """Embeds a frame by its mean colour, with the peak as a second output."""

    def build(batch="N", layout="NCHW", side=8):
        axes = [2, 3] if layout == "NCHW" else [1, 2]
        shape = [batch, 3, side, side] if layout == "NCHW" else [batch, side, side, 3]
        nodes = [
            ("ReduceMean", ["image"], ["color"], {"axes": axes, "keepdims": 0}),
            ("ReduceMax", ["image"], ["peak"], {"axes": [1, 2, 3], "keepdims": 1}),
        ]
        return write(nodes, shape, ["color", "peak"])

    return build


def colored(count, side=8):
    """Frames of one colour each."""
    colors = np.random.default_rng(0).uniform(-1, 1, (count, 1, 1, 3)).astype(np.float32)
    return np.tile(colors, (1, side, side, 1)), (colors[:, 0, 0] + 1) * 127.5


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("batch", ["N", 4])
@pytest.mark.parametrize("color", ["RGB", "BGR"])
def test_an_embedding_sees_what_the_options_say(mean_color, layout, batch, color):
    frames, colors = colored(6, side=10)
    mean, std = (10.0, 20.0, 30.0), (2.0, 3.0, 4.0)
    options = NetworkOptions(
        path=mean_color(batch, layout),
        layout=layout,
        color=color,
        mean=mean,
        std=std,
        normalize=False,
        batch_size=5,
    )
    network = OnnxNetwork(options)
    assert isinstance(network, FrameNetwork)
    embedding, found = network.identity(frames)
    wanted = colors if color == "RGB" else colors[:, ::-1]
    np.testing.assert_allclose(embedding, (wanted - mean) / std, rtol=1e-4, atol=1e-4)
    assert found.all() and found.shape == (6,)


def test_embeddings_are_scaled_and_scores_say_what_was_found(mean_color):
    frames, colors = colored(6)
    frames[2] = -1.0
    options = NetworkOptions(path=mean_color(), score_output="peak", min_score=0.1, **PLAIN)
    embedding, found = OnnxNetwork(options).identity(frames)
    np.testing.assert_array_equal(found, np.arange(6) != 2)
    np.testing.assert_allclose(np.linalg.norm(embedding[found], axis=1), 1.0, rtol=1e-5)
    frames[4] = np.nan
    assert OnnxNetwork(NetworkOptions(path=mean_color())).identity(frames)[1].sum() == 5


def test_heatmaps_give_points_in_pixels_of_the_frame(write):
    """The network is the identity: each colour is the heatmap of one point."""
    frames = np.full((3, 20, 30, 3), -1.0, np.float32)
    places = np.array([[4, 3], [25, 12], [13, 16]])  # x, y
    for channel, (x, y) in enumerate(places):
        frames[:2, y, x, channel] = 1.0
    frames[1, :, :, 1] = -0.9
    path = write([("Identity", ["image"], ["maps"])], [2, 3, 20, 30], ["maps"])
    options = NetworkOptions(path=path, reading="heatmaps", min_score=0.5, **PLAIN)
    points, found = OnnxNetwork(options, "landmarks").landmarks(frames)
    np.testing.assert_allclose(points[0], places, atol=1e-4)
    np.testing.assert_array_equal(np.isnan(points).all(-1), [[0] * 3, [0, 1, 0], [1] * 3])
    np.testing.assert_array_equal(found, [True, True, False])
    # A crop at half the scale, channels last, and two of the points.
    path = write([("Identity", ["image"], ["maps"])], ["N", 8, 12, 3], ["maps"])
    options = NetworkOptions(
        path=path,
        reading="heatmaps",
        layout="NHWC",
        alignment="crop",
        box=(0.1, 0.1, 0.9, 0.9),
        num_points=2,
        min_score=0.2,
        **PLAIN,
    )
    points, found = OnnxNetwork(options, "landmarks").landmarks(frames)
    np.testing.assert_allclose(points[0], places[:2], atol=1.6)
    assert points.shape == (3, 2, 2) and found.tolist() == [True, True, False]


@pytest.mark.parametrize("units", ["pixels", "unit", "signed"])
@pytest.mark.parametrize("is_flat", [True, False])
def test_points_are_read_in_their_units(write, units, is_flat):
    wanted = np.array([[2.0, 3.0], [8.0, 5.0]], np.float32)  # in an input of 10 x 20 pixels
    side = np.array([20.0, 10.0])
    told = {"pixels": wanted, "unit": wanted / side, "signed": 2 * wanted / side - 1}[units]
    nodes = [
        ("ReduceMin", ["image"], ["floor"], {"axes": [1, 2, 3], "keepdims": 0}),
        ("Unsqueeze", ["floor", "axes"], ["zero"]),
        ("Mul", ["zero", "none"], ["nothing"]),
        ("Add", ["nothing", "told"], ["points"]),
    ]
    shape = (1, 4) if is_flat else (1, 2, 2)
    constants = {
        "axes": np.arange(1, len(shape)),
        "none": np.zeros(1, np.float32),
        "told": told.astype(np.float32).reshape(shape),
    }
    path = write(nodes, ["N", 3, 10, 20], ["points"], constants)
    options = NetworkOptions(path=path, reading="points", units=units)
    points, found = OnnxNetwork(options, "landmarks").landmarks(np.zeros((3, 20, 60, 3), "f"))
    frame = (wanted + 0.5) * [3.0, 2.0] - 0.5
    np.testing.assert_allclose(points, np.tile(frame, (3, 1, 1)), atol=1e-4)
    assert found.all()


def umeyama(points, target):
    """The general formula of the paper, by a singular value decomposition."""
    p, q = points - points.mean(0), target - target.mean(0)
    u, values, vt = np.linalg.svd(q.T @ p / len(p))
    flip = np.array([1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    turn = u @ np.diag(flip) @ vt
    scale = (values * flip).sum() / np.square(p).sum(1).mean()
    shift = target.mean(0) - scale * turn @ points.mean(0)
    return np.concatenate([scale * turn, shift[:, None]], axis=1)


def test_similarities_are_least_squares_and_never_mirror():
    rng = np.random.default_rng(0)
    target = rng.normal(size=(5, 2))
    points = rng.normal(size=(8, 5, 2))
    points[0] = target * [-1.0, 1.0]
    maps, found = fit_similarity(points, target)
    assert found.all()
    for mapped, some in zip(maps, points, strict=True):
        np.testing.assert_allclose(mapped, umeyama(some, target), atol=1e-10)
    assert not fit_similarity(np.ones((1, 5, 2)), target)[1].any()


def test_aligned_faces_look_the_same_wherever_they_are():
    rng = np.random.default_rng(1)
    size = (16, 16)
    marks = np.array([[5, 5], [10, 5], [8, 8], [6, 11], [10, 11.0]])
    y, x = np.mgrid[:32, :32].astype(np.float64)
    frames, points = [], []
    for angle, scale, shift in ((0.0, 1.0, (8, 8)), (0.4, 1.3, (12, 4)), (-0.7, 0.9, (7, 16))):
        turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        points.append(marks @ turn.T + shift)
        back = (np.stack([x, y], -1) - shift) @ np.linalg.inv(turn).T
        color = [np.sin(back[..., 0] / 3), np.cos(back[..., 1] / 3), np.sin(back.sum(-1) / 4)]
        frames.append(np.stack(color, -1))
    frames, points = np.array(frames, np.float32), np.array(points, np.float32)
    maps, found = face_maps(points, np.ones(3, bool), size)
    seen = warp(frames, maps, size)
    inside = (seen != -1).all((0, 3))
    assert found.all() and inside.mean() > 0.5
    assert np.abs(seen - seen[:1])[:, inside].max() < 0.05
    assert np.abs(frames - frames[:1]).mean() > 0.3
    # Missing eyes, and points of another mark-up that mean the same.
    points[1, 0] = np.nan
    assert face_maps(points, np.array([True, True, False]), size)[1].tolist() == [1, 0, 0]
    of_68 = rng.normal(size=(1, 68, 2))
    of_68[0, [30, 48, 54]] = points[0, 2:]
    of_68[0, 36:42], of_68[0, 42:48] = points[0, 0], points[0, 1]
    np.testing.assert_allclose(face_maps(of_68, np.ones(1, bool), size)[0][0], maps[0], atol=1e-4)
    with pytest.raises(ValueError, match="allowed are 5, 68, 98, 106"):
        face_maps(points[:, :4], np.ones(3, bool), size)


def test_boxes_cover_what_they_name():
    frames = np.random.default_rng(0).uniform(-1, 1, (1, 8, 8, 3)).astype(np.float32)
    whole = box_map((0, 0, 1, 1), (8, 8), (8, 8))[None]
    np.testing.assert_array_equal(warp(frames, whole, (8, 8)), frames)
    half = box_map((0.5, 0, 1, 1), (8, 8), (8, 4))[None]
    np.testing.assert_allclose(warp(frames, half, (8, 4)), frames[:, :, 4:])
    np.testing.assert_allclose(move_points(np.zeros((1, 1, 2)), half), [[[4.0, 0.0]]])


def test_identity_is_aligned_by_the_landmarks(mean_color, tmp_path):
    """Of frames that are black but for a face, only the face is seen."""
    module = tmp_path / "marks.py"
    module.write_text(
        "import numpy as np\n"
        "SHAPE = np.array([[5, 5], [10, 5], [7.5, 8], [5.5, 11], [9.5, 11]], np.float32)\n"
        "def find(frames):\n"
        "    points = np.tile(SHAPE / 4 + 20, (len(frames), 1, 1))\n"
        "    return points, frames.max((1, 2, 3)) > -1\n"
    )
    frames = np.full((3, 40, 40, 3), -1.0, np.float32)
    frames[:2, 18:28, 18:28] = [0.6, 0.0, -0.2]
    networks = load_networks(
        {
            "landmarks": {"path": f"{module}:find"},
            "identity": {"path": mean_color(), "normalize": False, **PLAIN},
        }
    )
    assert set(networks) == {"landmarks", "identity"}
    embedding, found = networks["identity"].identity(frames)
    assert found.tolist() == [True, True, False]
    np.testing.assert_allclose(embedding[:2], [[0.8, 0.5, 0.4]] * 2, atol=0.01)


def halves(frames):
    return frames.mean((2, 3))


def odd(frames):
    return np.zeros((len(frames), 3, 3), np.float32)


def test_python_functions_serve_as_networks(tmp_path):
    frames = np.random.default_rng(0).uniform(-1, 1, (7, 4, 4, 3)).astype(np.float32)
    sys.modules["my_networks"] = sys.modules[__name__]
    options = NetworkOptions(path="my_networks:halves", batch_size=3)
    embedding, found = load_network(options, "body").identity(frames)
    np.testing.assert_allclose(embedding, frames.mean((2, 3)), rtol=1e-6)
    assert found.all()
    network = CallableNetwork(lambda x: (halves(x), x[:, 0, 0, 0] > 0), options)
    np.testing.assert_array_equal(network.identity(frames)[1], frames[:, 0, 0, 0] > 0)
    with pytest.raises(ValueError, match="gives no points"):
        network.landmarks(frames)
    with pytest.raises(ValueError, match=r"shapes \[3, 3, 3\]"):
        load_network(NetworkOptions(path="my_networks:odd", batch_size=3), "body").identity(frames)
    del sys.modules["my_networks"]
    (tmp_path / "mine.py").write_text("x = 1\n")
    with pytest.raises(ValueError, match="no attribute 'find'.*define find in it"):
        load_network(NetworkOptions(path=f"{tmp_path}/mine.py:find"), "body")
    with pytest.raises(FileNotFoundError, match="other.py.*re-identification"):
        load_network(NetworkOptions(path=f"{tmp_path}/other.py:find"), "body")


@pytest.mark.parametrize(
    ("role", "published"),
    [
        ("identity", "w600k_r50.onnx"),
        ("landmarks", "pfld.onnx"),
        ("body", "osnet"),
        ("features", "pt_inception"),
    ],
)
def test_a_missing_file_says_what_fits(tmp_path, role, published):
    options = {"path": str(tmp_path / "gone.onnx"), "alignment": "none"}
    with pytest.raises(FileNotFoundError, match=published) as caught:
        load_networks({role: options})
    message = str(caught.value)
    assert "gone.onnx" in message and f"eval.networks.{role}.path" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layout": "NHWC"}, "axis 3 is not the 3 colours"),
        ({"size": (9, 9)}, r"size=\(9, 9\) does not fit"),
        ({"output": "mouth"}, "no output 'mouth'; allowed are color, peak, or 0 to 1"),
        ({"score_output": "color"}, "allowed is one value a frame"),
        ({"reading": "points"}, "eval.networks.identity.reading: unknown value 'points'"),
        ({"alignment": "landmarks5"}, "set eval.networks.landmarks.path"),
        ({"alignment": "eyes"}, "allowed are none, crop, landmarks5"),
        ({"box": (0.5, 0, 0.2, 1)}, "left < right"),
        ({"std": (1.0, 0.0, 1.0)}, "std above 0"),
        ({"mean": (1.0,)}, "give 3 numbers"),
        ({"colour": "RGB"}, "Did you mean 'color'"),
        ({"path": "net.pt"}, "give an .onnx file"),
    ],
)
def test_what_does_not_fit_is_refused_when_loading(mean_color, change, message):
    options = {"path": mean_color(), "alignment": "none"} | change
    with pytest.raises(ValueError, match=message) as caught:
        load_networks({"identity": options})
    assert "\n" not in str(caught.value)


def test_files_that_are_no_such_network_are_refused(write, tmp_path, monkeypatch):
    def load(path, role="landmarks"):
        options = {"path": str(path), "alignment": "none", "reading": "heatmaps"}
        return load_networks({role: options})

    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(ValueError, match="onnxruntime cannot read it"):
        load(tmp_path / "text.onnx")
    identity = [("Identity", ["image"], ["out"])]
    with pytest.raises(ValueError, match="allowed is one input"):
        load(write(identity, ["N", 3, 8], ["out"]))
    with pytest.raises(ValueError, match="tensor.double"):
        load(write(identity, ["N", 3, 8, 8], ["out"], number_type=onnx.TensorProto.DOUBLE))
    with pytest.raises(ValueError, match="set eval.networks.landmarks.size"):
        load(write(identity, ["N", 3, "H", "W"], ["out"]))
    flat = write([("Flatten", ["image"], ["out"])], ["N", 3, 8, 8], ["out"])
    with pytest.raises(ValueError, match=r"shape \[1, 192\] for 1 frames"):
        load(flat)
    stuck = [("Reshape", ["image", "shape"], ["out"])]
    path = write(stuck, ["N", 3, 8, 8], ["out"], {"shape": np.array([5, 3, 8, 8])})
    with pytest.raises(ValueError, match="and fails on"):
        load(path)
    with pytest.raises(ValueError, match="Known: body, clip_features, features, identity"):
        load(flat, "face")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"pip install 'diffsda_jax\[onnx\]'"):
        load(flat)


def motion(clips):
    return np.diff(clips, axis=1).mean((2, 3, 4))


def test_functions_embed_whole_clips(tmp_path):
    clips = np.random.default_rng(0).uniform(-1, 1, (7, 5, 4, 4, 3)).astype(np.float32)
    sys.modules["my_networks"] = sys.modules[__name__]
    options = {"path": "my_networks:motion", "batch_size": 3}
    network = load_networks({"clip_features": options})["clip_features"]
    np.testing.assert_allclose(network.embed(clips), motion(clips), atol=1e-6)
    options["path"] = "my_networks:halves"
    with pytest.raises(ValueError, match=r"returned shape \[3, 5, 3\].*correct the function"):
        load_networks({"clip_features": options})["clip_features"].embed(clips)
    del sys.modules["my_networks"]
    with pytest.raises(ValueError, match="give a Python function of clips"):
        load_networks({"clip_features": {"path": "i3d.onnx"}})
    with pytest.raises(FileNotFoundError, match="i3d_torchscript.pt"):
        load_networks({"clip_features": {"path": f"{tmp_path}/gone.py:embed"}})


def test_half_precision_files_and_defaults(write):
    path = write(
        [("Identity", ["image"], ["out"])],
        ["N", 3, "H", "W"],
        ["out"],
        number_type=onnx.TensorProto.FLOAT16,
    )
    options = NetworkOptions(path=path, reading="heatmaps", size=(6, 6), **PLAIN)
    frames = np.full((1, 6, 6, 3), -1.0, np.float32)
    frames[0, 2, 3] = 1.0
    points, _ = OnnxNetwork(options, "landmarks").landmarks(frames)
    np.testing.assert_allclose(points, [[[3, 2]] * 3], atol=1e-5)
    assert load_networks(network_defaults()) == {}
    for role, options in DEFAULTS.items():
        options.check(role)
