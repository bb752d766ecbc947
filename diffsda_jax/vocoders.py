"""From log spectrograms to waveforms: a HiFi-GAN generator, or Griffin-Lim without one."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from diffsda_jax.audio.griffin_lim import griffin_lim
from diffsda_jax.audio.spectrogram import MelSpec
from diffsda_jax.convert.hifigan import load_hifigan
from diffsda_jax.features import FrontEnd
from diffsda_jax.nets.hifigan import Hifigan

Spectrum = Float[Array, "B V F"] | Float[np.ndarray, "B V F"]
Vocoder = Callable[[Spectrum], Float[Array, "B N"]]


def make_vocoder(front_end: FrontEnd, path: str = "") -> Vocoder:
    """What turns the front end's frames, not normalised, into waveforms at its rate.

    Args:
      front_end: that made the frames.
      path: a HiFi-GAN checkpoint; empty = Griffin-Lim.

    Returns:
      A function from ``[B, V, F]`` to ``[B, N]``: N is V hops of a mel, and V - 1 of a linear
      spectrogram by Griffin-Lim.

    Raises:
      ValueError, FileNotFoundError: a checkpoint that cannot be used.
    """
    if path:
        if front_end.kind != "mel":
            raise ValueError(
                f"config.eval.vocoder is {path!r}, but the front end is {front_end.kind!r}; "
                "HiFi-GAN needs 'mel'. Leave the vocoder empty for Griffin-Lim."
            )
        return load_vocoder(path)
    spec = front_end.spectrogram

    def play(log_spectrum: Spectrum) -> Array:
        return griffin_lim(jnp.asarray(log_spectrum), spec, jax.random.key(0))

    return play


def load_vocoder(path: str) -> Vocoder:
    """A HiFi-GAN generator as a function from log mel ``[B, V, 80]`` to waveforms ``[B, N]``.

    Raises:
      ValueError, FileNotFoundError: a file that is missing, or of a generator of other sizes.
    """
    spec, variables = load_hifigan(path)
    wanted = MelSpec()
    if (spec.num_mels, spec.hop) != (wanted.num_mels, wanted.hop):
        raise ValueError(
            f"vocoder {path} takes {spec.num_mels} mel bins and gives {spec.hop} samples a frame; "
            f"the front end gives {wanted.num_mels} and {wanted.hop}: choose another generator, or "
            "leave config.eval.vocoder empty."
        )
    return jax.jit(functools.partial(Hifigan(spec).apply, variables))
