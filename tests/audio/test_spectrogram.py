import jax
import jax.numpy as jnp
import make_golden
import numpy as np
import pytest
import scipy.signal

from diffsda_jax.audio import spectrogram as sg

MEL, LINEAR = sg.MelSpec(), sg.LinearSpec()
CASES = [
    (16000, 22050, 1),
    (16000, 22050, 333),
    (16000, 22050, 3200),
    (22050, 16000, 1000),
    (8000, 16000, 99),
    (48000, 16000, 100),
]


def relative(got, expected):
    return np.abs(np.asarray(got) - expected).max() / np.abs(expected).max()


@pytest.fixture(scope="module")
def golden():
    with np.load(make_golden.FILE) as file:
        return dict(file)


def stft_by_hand(x, spec, pad):
    """Plain-loop twin: one frame at a time, its spectrum from the definition in float64."""
    window = np.array([0.5 - 0.5 * np.cos(2 * np.pi * i / spec.window) for i in range(spec.window)])
    before = (spec.n_fft - spec.window) // 2
    angles = np.outer(np.arange(spec.n_fft // 2 + 1), np.arange(spec.n_fft))
    kernel = np.exp(-2j * np.pi * angles / spec.n_fft)
    padded = [x[-i] for i in range(-pad, 0)]  # x[pad], ..., x[1]
    padded += [*x, *(x[len(x) - 2 - i] for i in range(pad))]
    spectra, start = [], 0
    while start + spec.n_fft <= len(padded):
        frame = np.zeros(spec.n_fft)
        for i in range(spec.window):
            frame[before + i] = padded[start + before + i] * window[i]
        spectra.append(kernel @ frame)
        start += spec.hop
    return np.array(spectra)


@pytest.mark.parametrize(("from_hz", "to_hz", "samples"), CASES)
def test_resample_equals_scipy(from_hz, to_hz, samples):
    x = np.random.RandomState(1).standard_normal((2, samples)).astype(np.float32)
    got = jax.jit(sg.resample, static_argnums=(1, 2))(x, from_hz, to_hz)
    common = np.gcd(from_hz, to_hz)
    expected = scipy.signal.resample_poly(
        x.astype(np.float64), to_hz // common, from_hz // common, axis=-1
    )
    assert got.shape == expected.shape and relative(got, expected) < 1e-5


def test_resample_to_the_same_rate_and_to_none():
    x = jnp.ones((1, 7))
    assert sg.resample(x, 16000, 16000) is x
    with pytest.raises(ValueError, match="from 16000 to 0 Hz; rates must be positive"):
        sg.resample(x, 16000, 0)


def test_eight_tenths_of_a_second_are_68_frames():
    def front_end(x):
        return sg.log_mel(sg.resample(x, 16000, 22050), MEL)

    x = jax.ShapeDtypeStruct((2, 12800), jnp.float32)
    assert jax.eval_shape(lambda x: sg.resample(x, 16000, 22050), x).shape == (2, 17640)
    assert jax.eval_shape(front_end, x).shape == (2, 68, 80)
    assert sg.num_frames(MEL, 17640) == 68
    assert jax.eval_shape(lambda x: sg.log_linear(x, LINEAR), x).shape == (2, 78, 201)


@pytest.mark.parametrize("spec", [MEL, LINEAR, sg.MelSpec(n_fft=512, window=400, hop=160)])
def test_frames_and_samples_agree(spec):
    for frames in (1, 5, 68):
        samples = sg.num_samples(spec, frames)
        assert sg.num_frames(spec, samples) == frames
        assert sg.num_frames(spec, samples - 1) == frames - 1


@pytest.mark.parametrize(
    ("spec", "pad"),
    [
        (sg.MelSpec(n_fft=64, hop=16, window=64), 24),
        (sg.MelSpec(n_fft=64, hop=16, window=40), 24),
        (sg.LinearSpec(n_fft=40, hop=17, window=32), 20),
    ],
)
def test_stft_equals_its_plain_loop_twin(spec, pad):
    x = np.random.RandomState(2).standard_normal((2, 200)).astype(np.float32)
    got = jax.jit(sg.stft, static_argnums=1)(x, spec)
    expected = np.stack([stft_by_hand(row.astype(np.float64), spec, pad) for row in x])
    assert got.shape == expected.shape and relative(got, expected) < 1e-5


def test_overlap_add_is_the_transpose_of_frame():
    random = np.random.RandomState(0)
    x = random.standard_normal((2, 77)).astype(np.float32)
    y = random.standard_normal((2, 5, 25)).astype(np.float32)
    framed = np.asarray(jax.jit(sg.frame, static_argnums=(1, 2, 3))(x, 25, 13, 5))
    added = np.asarray(jax.jit(sg.overlap_add, static_argnums=1)(y, 13))
    assert added.shape == (2, 77)
    np.testing.assert_allclose((framed * y).sum(), (x * added).sum(), rtol=1e-5)
    for v in range(5):
        np.testing.assert_array_equal(framed[:, v], x[:, 13 * v : 13 * v + 25])


def test_mel_basis_equals_librosa(golden):
    expected = np.zeros((513, 80), np.float32)
    expected[golden["basis_rows"], golden["basis_columns"]] = golden["basis_values"]
    assert relative(sg.mel_basis(MEL), expected) < 1e-5


def test_log_mel_equals_librosa(golden):
    got = sg.log_mel(jnp.asarray(make_golden.signals(22050, 17640)), MEL)
    assert relative(got[:, make_golden.STORED_FRAMES], golden["log_mel"]) < 1e-4
    assert np.any(golden["log_mel"] < np.log(1e-4))  # the silence is in it


def test_log_linear_equals_librosa(golden):
    got = sg.log_linear(jnp.asarray(make_golden.signals(16000, 12800)), LINEAR)
    assert relative(got[:, make_golden.STORED_FRAMES], golden["log_linear"]) < 1e-4
    assert golden["log_linear"].min() == np.float32(np.log(1e-5))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # librosa's own are not ours
def test_all_equal_the_installed_librosa():
    pytest.importorskip("librosa")
    expected = make_golden.compute()
    assert relative(sg.mel_basis(MEL), expected["mel_basis"]) < 1e-5
    for name, spec, samples in (("log_mel", MEL, 17640), ("log_linear", LINEAR, 12800)):
        x = jnp.asarray(make_golden.signals(spec.sample_rate_hz, samples))
        assert relative(getattr(sg, name)(x, spec), expected[name]) < 1e-4


def test_silence_is_the_floor_and_has_a_gradient():
    def total(x):
        linear = sg.log_linear(x, LINEAR)
        return sg.log_mel(x, MEL).sum() + linear.sum(), linear

    slope, linear = jax.jit(jax.grad(total, has_aux=True))(jnp.zeros((1, 2000)))
    assert np.all(np.asarray(linear) == np.float32(np.log(1e-5)))
    assert np.isfinite(slope).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sg.MelSpec(window=2048), "hop 256, window 2048 and n_fft 1024; they must rise"),
        (lambda: sg.MelSpec(hop=255), "hop is 255; it must be even"),
        (lambda: sg.MelSpec(fmax_hz=12000.0), "0.0 to 12000.0 Hz; at 22050 Hz"),
        (lambda: sg.MelSpec(num_mels=0), "num_mels is 0"),
        (lambda: sg.LinearSpec(floor=0.0), "floor 0.0; both must be positive"),
        (lambda: sg.LinearSpec(n_fft=401), "n_fft must be even"),
        (lambda: sg.log_mel(jnp.zeros((1, 384)), MEL), "384 samples is too short for MelSpec"),
    ],
)
def test_wrong_values_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
