"""The part ``generation``: clips from factors that a prior samples, beside controls.

Every set of clips is compared with the test clips by the same measures:

- ``samples``: both factors from the prior; ``given_s``: s of test clips, d sampled; ``given_d``:
  d of test clips, s sampled; ``longer``: both, twice as long, cut into windows.
- ``train``: real training clips, the floor of every distance. ``reconstructed``: decoded from
  factors of training clips, what a perfect prior would reach; copies by construction.
  ``shuffled``: s of one training clip with d of another, what a perfect prior that takes s and d
  for independent would reach. ``scrambled``: every coordinate at every step from another training
  clip, chance.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Integer

from diffsda_jax.evals.context import Context
from diffsda_jax.evals.frechet import few_items_note, frechet_distance, series_statistics
from diffsda_jax.evals.interface import Clips, FactorPrior, Lengths, valid_steps
from diffsda_jax.evals.interpolation import interpolation_scores
from diffsda_jax.evals.sample_measures import label_distance, label_scores, memorising_ratio
from diffsda_jax.evals.views import NO_FEATURES, View, look_at
from diffsda_jax.factors import Factors, mix

Outcome = tuple[dict[str, float], list[str]]
Places = Integer[np.ndarray, " _"]
CONTROLS = ("train", "reconstructed", "shuffled", "scrambled")


@dataclass(frozen=True)
class Batch:
    """Factors of clips to be decoded, and what of these clips is to be looked at.

    A prior makes clips without gaps, of the length that it is asked for. So that they are seen as
    real ones are, each has the length and the gaps of a real clip.

    Attributes:
      factors: of N clips.
      length: real steps, or None.
      mask: True = observed, or None.
    """

    factors: Factors
    length: Lengths | None = None
    mask: Bool[np.ndarray, "N V *maskdims"] | None = None


def generation(context: Context) -> Outcome:
    """Scores of what the prior makes and of the controls, see the module; and notes."""
    if reason := why_no_generation(context):
        return {}, [f"generation skipped: {reason}"]
    count, rng = context.settings.num_samples, np.random.default_rng(context.settings.seed)
    like = rng.choice(context.trial, count, replace=count > len(context.trial))
    known = rng.permutation(len(context.train["x"]))[:count]
    batches, notes = sample_batches(context, like)
    batches |= control_batches(context, known)
    metrics = _factor_scores(context, batches)
    test = look_at(context, *_real(context.test, context.trial))
    train = look_at(
        context, *_real(context.train, np.arange(len(context.train["x"]))), networks=False
    )
    views = {"train": look_at(context, *_real(context.train, known))}
    for name, batch in batches.items():
        views[name] = look_at(
            context, context.decode_from_noise(batch.factors), batch.length, batch.mask
        )
    longer, more = sample_longer(context, (count + 1) // 2)
    if longer is not None:
        views["longer"] = _windows(context, longer, like)
    notes += more
    for name, view in views.items():
        scores = _distances(view, test)
        if name not in CONTROLS:
            scores |= _label_scores(view) | _kept(context, name, view, like)
        if name in ("samples", "reconstructed"):
            scores |= _memorising(view, train, test)
        metrics |= {f"{name}/{key}": value for key, value in scores.items()}
    metrics |= {f"test/{key}": value for key, value in _label_scores(test).items()}
    if not test.features:
        notes.append(f"Frechet distances of clips skipped: {NO_FEATURES}")
    for features in test.features.values():
        notes += filter(None, [few_items_note(min(count, len(features)), features.shape[1])])
    return _with_chance(metrics) | interpolation_scores(context), notes


def _prior_of(context: Context) -> FactorPrior:
    """The prior of a context; ValueError where there is none."""
    if context.prior is None:
        raise ValueError(why_no_generation(context))
    return context.prior


def why_no_generation(context: Context) -> str | None:
    """Why nothing can be generated, or None if it can."""
    if context.prior is None:
        return context.why_no_prior or "there is no prior; train one with --mode=prior"
    counts = (context.settings.num_samples, len(context.train["x"]), len(context.trial))
    if min(counts) < 2:
        return (
            "num_samples is {}, and there are {} training clips and {} test clips; it needs 2 or "
            "more of each".format(*counts)
        )
    if context.test_factors.static.ndim != 2:
        return "the model has one static factor for each step, and priors sample one for a sequence"
    return None


def sample_batches(context: Context, like: Places) -> tuple[dict[str, Batch], list[str]]:
    """What the prior samples, by name, and what it cannot do.

    Args:
      context: with a prior.
      like: test clips whose length and gaps the samples have, and whose factors are kept.

    Raises:
      ValueError: the context has no prior.
    """
    prior, seed, steps = _prior_of(context), context.settings.seed, context.test["x"].shape[1]
    given, how = context.test_factors[like], {"seed": seed, "lengths": context.pick("length", like)}
    ways = {
        "samples": lambda: prior.sample(len(like), steps, **how),
        "given_s": lambda: prior.sample_dynamic(given.static, steps, **how),
        "given_d": lambda: prior.sample_static(given.dynamic, **how),
    }
    batches, notes = {}, []
    for name, sample in ways.items():
        try:
            factors = _checked(sample(), steps)
        except ValueError as error:
            notes.append(f"generation of {name} skipped: {error}")
            continue
        batches[name] = Batch(factors, context.pick("length", like), context.pick("mask", like))
    return batches, notes


def control_batches(context: Context, known: Places) -> dict[str, Batch]:
    """Factors of training clips as they are, exchanged and scrambled; see the module."""
    rng = np.random.default_rng(context.settings.seed)
    factors = context.train_factors[known]
    length, mask = (
        context.train[name][known] if name in context.train else None for name in ("length", "mask")
    )
    order, other = rng.permutation(len(known)), np.empty(len(known), int)
    other[order] = np.roll(order, 1)  # nobody keeps its own
    made = {
        "reconstructed": factors,
        "shuffled": mix(static_from=factors[other], dynamic_from=factors),
        "scrambled": Factors(
            rng.permuted(np.asarray(factors.static), axis=0),
            rng.permuted(np.asarray(factors.dynamic), axis=0),
        ),
    }
    return {name: Batch(value, length, mask) for name, value in made.items()}


def sample_longer(context: Context, count: int) -> tuple[Clips | None, list[str]]:
    """Clips twice as long as those of the data; None, and why, where prior or model cannot."""
    steps = 2 * context.test["x"].shape[1]
    try:
        factors = _prior_of(context).sample(count, steps, seed=context.settings.seed)
        return context.decode_from_noise(_checked(factors, steps)), []
    except ValueError as error:
        return None, [f"sequences longer than seen skipped: {error}"]


def _checked(factors: Factors, steps: int) -> Factors:
    """The same as numpy arrays; ValueError for another length than was asked for."""
    if factors.dynamic.shape[1] != steps:
        raise ValueError(f"the prior made {factors.dynamic.shape[1]} steps and not {steps}")
    return Factors(np.asarray(factors.static), np.asarray(factors.dynamic))


def _real(data: dict, places: Places) -> tuple[Clips, Lengths | None, np.ndarray | None]:
    """Some clips of a split with their lengths and gaps."""
    length, mask = (data[name][places] if name in data else None for name in ("length", "mask"))
    return data["x"][places], length, mask


def _windows(context: Context, x: Clips, like: Places) -> View:
    """What is seen of both halves of clips that are twice as long as those of the data."""
    steps = context.test["x"].shape[1]
    windows = x.reshape(2 * len(x), steps, *x.shape[2:])
    places = np.repeat(like[: len(x)], 2)
    return look_at(context, windows, context.pick("length", places), context.pick("mask", places))


def _distances(view: View, test: View) -> dict[str, float]:
    """How far clips are from test clips, in their features and in the labels a judge sees."""
    scores = {
        f"frechet_{kind}": frechet_distance(features, test.features[kind])
        for kind, features in view.features.items()
    }
    if view.probabilities:
        distance = label_distance(view.probabilities, test.probabilities)
        scores["label_distance_percent"] = 100.0 * distance
    return scores


def _label_scores(view: View) -> dict[str, float]:
    """Inception score and entropies of each head of the judge."""
    return {
        f"{head}_{name}": value
        for head, probabilities in view.probabilities.items()
        for name, value in label_scores(probabilities).items()
    }


def _kept(context: Context, name: str, view: View, like: Places) -> dict[str, float]:
    """Whether the judge sees the label of the factor that was kept, and not that of the other.

    A factor that is sampled has the label of the clip's own as often as any two clips do: that is
    the chance beside ``repeated``; more says that the prior does not vary what it should.
    """
    if name not in ("given_s", "given_d"):
        return {}
    scores = {}
    for head, probabilities in view.probabilities.items():
        label = context.pick(f"{head}_label", like)
        if label is None:
            continue
        is_kept = head == {"given_s": "static", "given_d": "dynamic"}[name]
        what = f"{head}_{'kept' if is_kept else 'repeated'}"
        judged = probabilities.argmax(1)
        scores[f"{what}_percent"] = 100.0 * float((judged == label).mean())
        share = np.unique(label, return_counts=True)[1] / len(label)
        scores[f"{what}_chance_percent"] = 100.0 * float(np.square(share).sum())
    return scores


def _memorising(view: View, train: View, test: View) -> dict[str, float]:
    """How near clips are to training clips, see `memorising_ratio`: copies are near 0."""
    scores = {"memorising_values": memorising_ratio(view.values, train.values, test.values)}
    if "judge" in view.features:
        sets = (seen.features["judge"] for seen in (view, train, test))
        scores["memorising_judge"] = memorising_ratio(*sets)
    return scores


def _factor_scores(context: Context, batches: dict[str, Batch]) -> dict[str, float]:
    """The Frechet distance to test clips and the memorising ratio of factors, nothing decoded."""
    scale = FactorScale(context.train_factors, context.train.get("length"))
    splits = {
        name: Batch(factors, data.get("length"))
        for name, factors, data in (
            ("train", context.train_factors, context.train),
            (
                "test",
                context.test_factors[context.trial],
                {"length": context.pick("length", context.trial)},
            ),
        )
    }
    test = scale.statistics(splits["test"])
    scores = {
        # What is reconstructed are the factors of real training clips.
        f"{name.replace('reconstructed', 'train')}/frechet_factors": frechet_distance(
            scale.statistics(batch), test
        )
        for name, batch in batches.items()
    }
    if "samples" in batches:
        items = (
            scale.flat(batch) for batch in (batches["samples"], splits["train"], splits["test"])
        )
        scores["samples/memorising_factors"] = memorising_ratio(*items)
    return scores


class FactorScale:
    """Factors in units of their spread over the training clips, as features."""

    def __init__(self, factors: Factors, length: Lengths | None):
        """Measures mean and spread; padding does not count."""
        static, dynamic = np.asarray(factors.static), np.asarray(factors.dynamic)
        steps = dynamic[valid_steps(dynamic.shape, length)]
        self._static, self._dynamic = (
            (values.mean(0), np.maximum(values.std(0), 1e-6)) for values in (static, steps)
        )

    def apply(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """Static ``[B, S]`` and dynamic ``[B, V, D]`` in these units, the latter 0 at padding."""
        (mean_s, std_s), (mean_d, std_d) = self._static, self._dynamic
        dynamic = (np.asarray(batch.factors.dynamic) - mean_d) / std_d
        valid = valid_steps(dynamic.shape, batch.length)[..., None]
        return (np.asarray(batch.factors.static) - mean_s) / std_s, np.where(valid, dynamic, 0)

    def statistics(self, batch: Batch) -> Float[np.ndarray, "N E"]:
        """The static factor, and mean, spread and roughness of d over the steps."""
        static, dynamic = self.apply(batch)
        return np.concatenate([static, series_statistics(dynamic, batch.length)], axis=1)

    def flat(self, batch: Batch) -> Float[np.ndarray, "N E"]:
        """All of s and d; both weigh the same."""
        parts = (part.reshape(len(part), -1) for part in self.apply(batch))
        return np.concatenate([part / np.sqrt(part.shape[1]) for part in parts], axis=1)


def _with_chance(metrics: dict[str, float]) -> dict[str, float]:
    """Scrambled clips as the chance level of all that the prior made, as tables show it."""
    prefix = "scrambled/"
    chance = {
        name.removeprefix(prefix): value
        for name, value in metrics.items()
        if name.startswith(prefix)
    }
    result = {}
    for name, value in metrics.items():
        group, _, measure = name.partition("/")
        if group != "scrambled":
            result[name] = value
            if group not in CONTROLS and measure in chance:
                base = name.removesuffix("_percent")
                result[f"{base}_chance{name.removeprefix(base)}"] = chance[measure]
    return result
