"""What an evaluation is given beside arrays: sound, frames of latents, networks, given pairs."""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from diffsda_jax.audio.griffin_lim import griffin_lim
from diffsda_jax.audio.spectrogram import MelSpec
from diffsda_jax.convert.hifigan import load_hifigan
from diffsda_jax.data.sources.known_factors import KnownFactors
from diffsda_jax.data.sources.latents import Latents
from diffsda_jax.evals.context import Domain, FrameDecoder, Render
from diffsda_jax.evals.interface import Sound
from diffsda_jax.evals.networks import load_networks
from diffsda_jax.experiment import Experiment
from diffsda_jax.first_stage_api import FirstStage
from diffsda_jax.nets.hifigan import Hifigan


def make_domain(experiment: Experiment, first_stage: FirstStage | None = None) -> Domain:
    """All of it; what is missing is None, and the parts that need it say so.

    Args:
      experiment: whose data are evaluated.
      first_stage: that made latents of the data; None takes the config's, where the source gives
        latents.

    Raises:
      ValueError, FileNotFoundError: a vocoder, first stage or network that cannot be used.
    """
    config = experiment.config
    if first_stage is None and config.source.name == "latents" and config.first_stage.checkpoint:
        first_stage = load_first_stage(config)
    frame_rate = experiment.element.fps if experiment.element.kind == "video" else None
    return Domain(
        sound=make_sound(experiment),
        tasks=experiment.sources["train"].tasks,
        render=make_render(experiment),
        frame_decoder=first_stage and make_frame_decoder(experiment, first_stage),
        networks=load_networks(config.eval.networks.to_dict()),
        fps=frame_rate or Domain.fps,
    )


def load_first_stage(config: ConfigDict) -> FirstStage:
    """The frame autoencoder that ``first_stage.checkpoint`` names.

    Raises:
      ValueError: none is named, or it is no first stage.
      FileNotFoundError: it does not exist.
    """
    way_out = (
        "set --config.first_stage.checkpoint to the folder of a converted one (python -m "
        "diffsda_jax.convert) or of one that --mode=first_stage trained"
    )
    if not config.first_stage.checkpoint:
        raise ValueError(f"first_stage.checkpoint is empty; {way_out}.")
    path = Path(config.first_stage.checkpoint).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"first_stage.checkpoint {path} does not exist; {way_out}.")
    return FirstStage.from_checkpoint(path)


def make_frame_decoder(experiment: Experiment, first_stage: FirstStage) -> FrameDecoder:
    """How normalised latents become frames in [-1, 1].

    Raises:
      ValueError: another first stage than that of the latents.
    """
    config, channels = experiment.config, experiment.spec.shape[-1]
    if first_stage.spec.embed_dim != channels:
        raise ValueError(
            f"config.first_stage.checkpoint is {config.first_stage.checkpoint!r}, whose latents "
            f"have {first_stage.spec.embed_dim} channels; those of the model have {channels}: "
            "give the first stage that made them."
        )

    source = experiment.sources["test"]
    if isinstance(source, Latents) and source.facts["first_stage"] != first_stage.fingerprint():
        raise ValueError(
            f"config.first_stage.checkpoint is {config.first_stage.checkpoint!r}, but the latents "
            f"in {config.source.options.root} were made with another first stage: give that one."
        )

    def decode(x: np.ndarray) -> np.ndarray:
        latents = experiment.normalizer.invert(x)
        return np.clip(first_stage.decode(latents, config.first_stage.chunk_frames), -1.0, 1.0)

    return decode


def make_sound(experiment: Experiment) -> Sound | None:
    """How frames of an audio experiment become sound; None where there is no sound.

    Raises:
      ValueError, FileNotFoundError: a vocoder's checkpoint that cannot be used.
    """
    front_end, vocoder = experiment.front_end, experiment.config.eval.vocoder
    if front_end is None:
        return None
    spec = front_end.spectrogram
    if vocoder:
        if front_end.kind != "mel":
            raise ValueError(
                f"config.eval.vocoder is {vocoder!r}, but the front end is {front_end.kind!r}; "
                "HiFi-GAN needs 'mel'. Leave the vocoder empty for Griffin-Lim."
            )
        play = load_vocoder(vocoder)
    else:

        def play(log_spectrum: np.ndarray) -> Array:
            return griffin_lim(jnp.asarray(log_spectrum), spec, jax.random.key(0))

    return Sound(experiment.normalizer.invert, play, spec.sample_rate_hz)


def load_vocoder(path: str) -> Callable[[Array], Array]:
    """A HiFi-GAN generator as a function from log mel ``[B, V, 80]`` to waveforms ``[B, N]``."""
    spec, variables = load_hifigan(path)
    wanted = MelSpec()
    if (spec.num_mels, spec.hop) != (wanted.num_mels, wanted.hop):
        raise ValueError(
            f"vocoder {path} takes {spec.num_mels} mel bins and gives {spec.hop} samples a frame; "
            f"the front end gives {wanted.num_mels} and {wanted.hop}: choose another generator, or "
            "leave config.eval.vocoder empty."
        )
    return jax.jit(functools.partial(Hifigan(spec).apply, variables))


def make_render(experiment: Experiment) -> Render | None:
    """Makes normalised clips from true factors, where the source can."""
    source = experiment.sources["test"]
    if not isinstance(source, KnownFactors):
        return None
    return lambda static, dynamic: experiment.normalizer.apply(source.render(static, dynamic))
