import jax
import jax.numpy as jnp
import make_golden
import numpy as np
import pytest

from diffsda_jax.audio import griffin_lim as gl
from diffsda_jax.audio import spectrogram as sg

MEL, LINEAR = sg.MelSpec(), sg.LinearSpec()
STFT, INVERSE = (jax.jit(f, static_argnums=1) for f in (sg.stft, gl.inverse_stft))
CASES = [
    (MEL, jax.jit(sg.log_mel, static_argnums=1)),
    (LINEAR, jax.jit(sg.log_linear, static_argnums=1)),
]
FRAMES, KEY = 24, 3


def distance(got, expected):
    """Spectral convergence of each item: norm of the error relative to the norm."""
    got, expected = np.exp(got), np.exp(expected)
    return np.linalg.norm(got - expected, axis=(1, 2)) / np.linalg.norm(expected, axis=(1, 2))


def spectrogram(spec, function):
    samples = sg.num_samples(spec, FRAMES)
    return function(make_golden.signals(12000, samples), spec)


@pytest.mark.parametrize(("spec", "function"), CASES)
def test_sound_has_the_spectrogram_it_was_made_from(spec, function):
    wanted, key = spectrogram(spec, function), jax.random.key(KEY)
    sound = gl.griffin_lim(wanted, spec, jax.random.clone(key))
    assert sound.shape == (2, sg.num_samples(spec, FRAMES)) and np.isfinite(sound).all()
    got = distance(function(sound, spec), wanted)
    # Controls: phases left as drawn, and the sound of the other item.
    drawn = gl.griffin_lim(wanted, spec, jax.random.clone(key), num_iterations=0)
    assert np.all(got < 0.2) and np.all(distance(function(drawn, spec), wanted) > 2.5 * got)
    assert np.all(distance(function(sound[::-1], spec), wanted) > 4 * got)
    again = gl.griffin_lim(wanted, spec, jax.random.clone(key))
    np.testing.assert_array_equal(again, sound)
    assert not np.array_equal(gl.griffin_lim(wanted, spec, jax.random.key(KEY + 1)), sound)


@pytest.mark.parametrize(("spec", "function"), CASES)
def test_scan_equals_its_plain_loop_twin(spec, function):
    """With its own update, written from the paper on numpy arrays."""
    wanted, momentum = spectrogram(spec, function), 0.9
    got = gl.griffin_lim(wanted, spec, jax.random.key(KEY), 3, momentum)
    magnitude = np.asarray(gl.linear_magnitude(wanted, spec))
    angle = jax.random.uniform(jax.random.key(KEY), magnitude.shape, minval=-jnp.pi, maxval=jnp.pi)
    phase, last = np.exp(1j * np.asarray(angle)), 0.0
    for _ in range(3):
        sound = INVERSE(jnp.asarray(magnitude * phase, jnp.complex64), spec)
        consistent = np.asarray(STFT(sound, spec))
        ahead = consistent - momentum / (1 + momentum) * last
        phase, last = ahead / np.maximum(np.abs(ahead), 1e-8), consistent
    expected = INVERSE(jnp.asarray(magnitude * phase, jnp.complex64), spec)
    np.testing.assert_allclose(got, expected, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize(("spec", "function"), CASES)
def test_inverse_stft_undoes_stft(spec, function):
    x = jnp.asarray(make_golden.signals(12000, sg.num_samples(spec, FRAMES)))
    np.testing.assert_allclose(INVERSE(STFT(x, spec), spec), x, atol=1e-5)


def test_magnitude_behind_a_mel_is_not_negative_and_has_that_mel():
    wanted = spectrogram(*CASES[0])
    magnitude = np.asarray(gl.linear_magnitude(wanted, MEL))
    assert magnitude.min() >= 0 and np.all(magnitude[..., sg.mel_basis(MEL).sum(1) == 0] == 0)
    mel = np.log(np.maximum(magnitude @ sg.mel_basis(MEL), 1e-5))
    assert np.all(distance(mel, wanted) < 5e-3)


def test_wrong_spectrograms_are_refused():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="80 features cannot be inverted by LinearSpec.* 201"):
        gl.griffin_lim(jnp.zeros((1, 4, 80)), LINEAR, key)
    with pytest.raises(ValueError, match="256 samples is too short for MelSpec"):
        gl.griffin_lim(jnp.zeros((1, 1, 80)), MEL, key)
