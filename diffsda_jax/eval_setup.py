"""What an evaluation is given beside arrays: sound, frames of latents, networks, given pairs."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from diffsda_jax.data.sources.known_factors import KnownFactors
from diffsda_jax.data.sources.latents import Latents
from diffsda_jax.evals.context import Domain, FrameDecoder, Render
from diffsda_jax.evals.interface import Sound
from diffsda_jax.evals.networks import load_networks
from diffsda_jax.experiment import Experiment
from diffsda_jax.first_stage_api import FirstStage
from diffsda_jax.vocoders import make_vocoder


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
        frame_decoder=None if first_stage is None else make_frame_decoder(experiment, first_stage),
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
    front_end = experiment.front_end
    if front_end is None:
        return None
    play = make_vocoder(front_end, experiment.config.eval.vocoder)
    return Sound(experiment.normalizer.invert, play, front_end.spectrogram.sample_rate_hz)


def make_render(experiment: Experiment) -> Render | None:
    """Makes normalised clips from true factors, where the source can."""
    source = experiment.sources["test"]
    if not isinstance(source, KnownFactors):
        return None
    return lambda static, dynamic: experiment.normalizer.apply(source.render(static, dynamic))
