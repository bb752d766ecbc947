import json

import numpy as np
import pytest
from PIL import Image

from diffsda_jax.evals import pictures, plots, report


def test_table_is_aligned_and_grouped_with_chance_beside():
    table = report.format_table(
        {
            "probes/s_to_static_percent": 97.8,
            "probes/s_to_static_chance_percent": 11.1,
            "probes/s_to_static_over_chance_points": 86.7,
            "swap/trajectory_error_pixels": 0.25,
            "swap/missing_percent": float("nan"),
        }
    )
    assert table.splitlines() == [
        "metric               value  unit  chance  vs chance",
        "---------------------------------------------------",
        "probes",
        "  s to static        97.80  %      11.10     +86.70",
        "swap",
        "  trajectory error  0.2500  px",
        "  missing             none  %",
    ]


def test_results_are_strict_json(tmp_path):
    path = report.write_results(
        {"a/b": np.float32(1.5), "a/c": float("nan")},
        tmp_path / "new",
        form="reference",
        settings={"seed": 3},
        notes=["why"],
    )
    content = json.loads(path.read_text())
    assert content == {
        "form": "reference",
        "settings": {"seed": 3},
        "metrics": {"a/b": 1.5, "a/c": None},
        "notes": ["why"],
    }


def test_frames_become_colours():
    grey = pictures.to_uint8(np.array([-1.0, 0.0, 1.0, 2.0], np.float32)[:, None])
    assert grey[:, 0].tolist() == [0, 128, 255, 255]
    assert (grey[:, :1] == grey).all()
    assert pictures.to_uint8(np.zeros((2, 2, 4), np.float32)).shape == (2, 2, 3)
    with pytest.raises(ValueError, match="2 channels"):
        pictures.to_uint8(np.zeros((2, 2), np.float32))


def test_small_frames_are_enlarged_without_blur():
    frames = np.random.default_rng(0).integers(0, 255, (2, 16, 16, 3)).astype(np.uint8)
    large = pictures.enlarge(frames)
    assert large.shape == (2, 48, 48, 3)
    np.testing.assert_array_equal(large[:, ::3, 1::3], frames)
    assert pictures.enlarge(np.zeros((64, 64, 3), np.uint8)).shape == (64, 64, 3)


def test_grid_cells_are_where_they_belong(tmp_path):
    def clip(level):
        return np.full((3, 8, 8, 1), level, np.float32)

    x_static, x_dynamic = np.stack([clip(-1), clip(-0.6)]), np.stack([clip(0.1)] * 3)
    levels = np.array([[0.2, 0.3], [0.4, 0.5], [0.6, 0.7]])
    x_swap = np.stack([[clip(level) for level in row] for row in levels])
    frames = pictures.swap_grid_animation(x_static, x_dynamic, x_swap)
    assert len(frames) == 3
    # Every cell is one grey square; its centre is found from the layout of the last cell.
    side, gap = 80, 8
    for row in range(3):
        for column in range(2):
            bottom = frames[0].shape[0] - (2 - row) * (side + gap) - gap - side // 2
            right = frames[0].shape[1] - (1 - column) * (side + gap) - gap - side // 2
            expected = pictures.to_uint8(np.array([[levels[row, column]]], np.float32))[0]
            np.testing.assert_array_equal(frames[0][bottom, right], expected)
    path = pictures.write_gif(frames, tmp_path / "grid.gif")
    with Image.open(path) as animation:
        assert animation.info["loop"] == 0
    still = pictures.swap_grid_image(x_static, x_dynamic, x_swap, num_frames=2)
    paths = report.write_pictures({"swap/grid": still}, tmp_path)
    assert paths == [tmp_path / "swap_grid.png"]
    with Image.open(paths[0]) as image:
        np.testing.assert_array_equal(np.asarray(image), still)


@pytest.mark.parametrize("num_features", [3, 12])
def test_series_and_factor_plots_are_drawn(num_features):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 10, num_features))
    length = np.array([10, 6], np.int32)
    drawn = plots.swap_series_figure(
        x, x[::-1], x, length_dynamic=length, x_reconstructed=x, captions=["one", "two"]
    )
    other = plots.swap_series_figure(x, x[::-1], -x, length_dynamic=length, x_reconstructed=x)
    assert drawn.dtype == np.uint8 and drawn.shape[2] == 3
    assert (drawn.min(), drawn.max()) != (255, 255)
    assert other.shape != drawn.shape or (other != drawn).any()
    assert plots.dynamics_figure(x[..., :2], length, ["a", "b"]).min() < 255
    assert plots.static_scatter_figure(x[0]).min() < 255
    assert plots.static_scatter_figure(x[0], np.arange(10) % 2, ["u", "v"]).min() < 255


def test_donors_have_different_labels_first():
    label = np.repeat(np.arange(5), 20)
    chosen = report.choose_donors(100, 5, label, np.random.default_rng(0))
    assert sorted(label[chosen]) == [0, 1, 2, 3, 4]
    assert len(report.choose_donors(3, 5, None, np.random.default_rng(0))) == 3


def test_captions_name_the_labels():
    known = {
        "static": (np.array([0, 1]), ("zero", "one")),
        "dynamic": (np.array([3, 9]), None),
    }
    assert report.captions_for(known, np.array([1, 0])) == ["one, 9", "zero, 3"]
    sentence = {"dynamic": (np.array([0]), ["the fox jumps over the dog"])}
    assert report.captions_for(sentence, np.array([0])) == ["the fox jumps over t…"]
