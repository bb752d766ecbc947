"""What an evaluation of speech lets one hear: whole recordings with the voice of another."""

from collections.abc import Callable

import numpy as np
import scipy.fft
from jaxtyping import Float, Integer

from diffsda_jax.evals.context import Context
from diffsda_jax.evals.interface import Clips, Lengths, Sound, mean_over_steps, valid_steps
from diffsda_jax.evals.swap import decode_factors, make_start
from diffsda_jax.factors import Factors

_CEPSTRA = slice(1, 14)  # of the mean mel-cepstrum: the shape of a voice, without its loudness
_REAL = ("/voice", "/words")
_NATS_TO_DB = 10.0 / np.log(10.0)
Frames = Float[np.ndarray, "_ F"]


def make_sounds(context: Context, sound: Sound, count: int) -> dict[str, Float[np.ndarray, " N"]]:
    """Waveforms of a few swaps: who gives the voice, who the words, and the result.

    Whole recordings: s is the mean over the chunks of one, as in verification, d comes from each
    chunk of the other.
    ``reconstruction`` is the words with their own voice, to compare. Both are decoded from the
    start noise of the settings; sampled steps flicker, so ``zero`` is best listened to.

    Returns:
      By name: ``swap_0/voice``, ``swap_0/words``, ``swap_0/result``, ``swap_0/reconstruction``.
    """
    voices, words = swapped_recordings(context, count)
    if not voices:
        return {}
    decoded = _decode(context, voices + words, words + words)
    frames: dict[str, Frames] = {}
    for number, (voice, word) in enumerate(zip(voices, words, strict=True)):
        frames[f"swap_{number}/voice"] = _joined(context, voice, context.test["x"][voice])
        frames[f"swap_{number}/words"] = _joined(context, word, context.test["x"][word])
        frames[f"swap_{number}/result"] = _joined(context, word, decoded[number])
        own = decoded[number + len(voices)]
        frames[f"swap_{number}/reconstruction"] = _joined(context, word, own)
    return _play(frames, sound)


def cepstral_distances(
    x: Clips,
    x_static: Clips,
    x_dynamic: Clips,
    denormalize: Callable[[Clips], Clips],
    length_static: Lengths | None = None,
    length_dynamic: Lengths | None = None,
) -> dict[str, float]:
    """How near the mean mel-cepstrum of a swap is to that of either donor.

    The distance is the usual mel-cepstral distortion, ``10 / ln 10 * sqrt(2 sum_k (c_k - c'_k)^2)``
    over 13 coefficients without the loudness, of means over time: what is said averages out, the
    voice stays.

    Args:
      x: swaps, normalised ``[P, V, F]``.
      x_static: the clips that gave the static factor.
      x_dynamic: the clips that gave the dynamics.
      denormalize: to log mel.
      length_static: real steps of the first donors; None means all V.
      length_dynamic: of the others, and of the swaps.

    Returns:
      Means over the swaps in dB, and the share of swaps nearer to the static donor.

    References:
      Kubichek 1993, mel-cepstral distance.
    """

    def voice(frames: Clips, length: Lengths | None) -> Float[np.ndarray, "P K"]:
        mean = mean_over_steps(np.asarray(denormalize(frames)), length)
        return scipy.fft.dct(mean, norm="ortho", axis=-1)[:, _CEPSTRA] * np.sqrt(2 / mean.shape[1])

    swapped = voice(x, length_dynamic)
    to_static, to_dynamic = (
        _NATS_TO_DB * np.sqrt(2.0 * ((swapped - voice(donor, length)) ** 2).sum(-1))
        for donor, length in ((x_static, length_static), (x_dynamic, length_dynamic))
    )
    return {
        "cepstral_distance_to_static_db": float(to_static.mean()),
        "cepstral_distance_to_dynamic_db": float(to_dynamic.mean()),
        "nearer_to_static_percent": 100.0 * float(np.mean(to_static < to_dynamic)),
        "nearer_to_static_chance_percent": 50.0,
    }


def swapped_recordings(context: Context, count: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Recordings that give voices and others that give words, of different speakers.

    Args:
      context: of the evaluation; its seed decides.
      count: swaps at most; a recording of the only speaker has no partner.

    Returns:
      For every swap the places of the chunks of the first, ``[chunks]``, and those of the second.
    """
    group = context.test.get("group", np.arange(len(context.test["x"])))[context.trial]
    places = [context.trial[group == name] for name in np.unique(group)]
    rng = np.random.default_rng(context.settings.seed)
    speaker = [int(context.test["static_label"][chunks[0]]) for chunks in places]
    voices, words = [], []
    for index in rng.permutation(len(places))[:count]:
        others = [place for place in range(len(places)) if speaker[place] != speaker[index]]
        if others:
            voices.append(places[index])
            words.append(places[int(rng.choice(others))])
    return voices, words


def _decode(context: Context, voices: list[np.ndarray], words: list[np.ndarray]) -> list[Clips]:
    """Frames of all chunks of recordings, each with the mean s of another."""
    codes = context.codes("test")
    s, d = np.asarray(codes.static), np.asarray(codes.dynamic)
    pairs = list(zip(voices, words, strict=True))
    weights = valid_steps(d.shape, context.test.get("length")).sum(1)
    static = [
        np.tile(np.average(s[voice], axis=0, weights=weights[voice]), (len(word), 1))
        for voice, word in pairs
    ]
    # For a start from the voice's own noise: its chunks, over again where the words have more.
    targets = np.concatenate([np.resize(voice, len(word)) for voice, word in pairs])
    chunks, settings = np.concatenate(words), context.settings
    start = make_start(
        context.model,
        settings.start,
        context.test["x"][chunks].shape,
        target=context.test_clips(targets),
        donor=context.test_clips(chunks),
        num_steps=settings.num_steps,
        seed=settings.seed,
        batch_size=settings.batch_size,
    )
    decoded = decode_factors(
        context.model,
        Factors(static=np.concatenate(static), dynamic=d[chunks]),
        start,
        num_steps=settings.num_steps,
        batch_size=settings.batch_size,
    )
    return np.split(decoded, np.cumsum([len(word) for word in words])[:-1])


def _joined(context: Context, chunks: Integer[np.ndarray, " C"], x: Clips) -> Frames:
    """Chunks one after the other, without what only fills them up."""
    return x[valid_steps(x.shape, context.pick("length", chunks))]


def _play(frames: dict[str, Frames], sound: Sound) -> dict[str, Float[np.ndarray, " N"]]:
    """Recordings made audible, all in one batch that is padded with silence.

    What is decoded is kept within the quietest and the loudest of the real recordings: the levels
    are exponents, and a model that is not trained yet gives any number, or none: that is silence.
    """
    joined = [sound.denormalize(x) for x in frames.values()]
    real = [x for name, x in zip(frames, joined, strict=True) if name.endswith(_REAL)]
    quiet, loud = min(float(x.min()) for x in real), max(float(x.max()) for x in real)
    joined = [np.clip(np.nan_to_num(x, nan=quiet), quiet, loud) for x in joined]
    longest = max(len(x) for x in joined)
    batch = np.stack(
        [np.pad(x, ((0, longest - len(x)), (0, 0)), constant_values=quiet) for x in joined]
    )
    waves = np.asarray(sound.vocoder(batch))
    return {
        name: wave[: len(x) * wave.size // longest]
        for name, x, wave in zip(frames, joined, waves, strict=True)
    }
