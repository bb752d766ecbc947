"""Part ``interventions``: change one factor, decode, and see what else changed.

Two-factor: all of ``s`` or all of ``d`` is exchanged. Multi-factor: only the codes that tell more
about one label than about any other. Swaps take codes of another test clip, whose label the decoded
clip should then show; samples draw them, from the prior if there is one, else from clips of the
training split. All labels that were not intervened on should stay.

References:
  Barami et al., Disentanglement Beyond Static vs. Dynamic: A Benchmark and Evaluation Framework for
  Multi-Factor Sequential Representations, NeurIPS 2025 (arXiv 2510.17313): the interventions, the
  judge, and the score, 1 minus the mean distance from what a perfect model gives. The assignment of
  codes by mutual information is our own.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Integer

from diffsda_jax.evals import mutual_information as measure
from diffsda_jax.evals.consistency import cycle_errors
from diffsda_jax.evals.context import Context
from diffsda_jax.evals.interface import Clips, Labels, Lengths, encode_clips
from diffsda_jax.evals.judges import Judge
from diffsda_jax.evals.labelled_codes import clip_table
from diffsda_jax.evals.labels import Label, collect_labels, read_labels, train_readers
from diffsda_jax.evals.swap import make_pairs
from diffsda_jax.factors import Factors, mix

Outcome = tuple[dict[str, float], list[str]]


@dataclass
class _Trial:
    """Test clips that are intervened on, and what is found."""

    context: Context
    labels: Sequence[Label]
    judges: Mapping[str, Judge]
    base: Integer[np.ndarray, " P"]
    donor: Integer[np.ndarray, " P"]
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def donor_labels(self) -> dict[str, Labels]:
        """Labels of the donors of swaps."""
        return self.labels_at(self.donor)

    def labels_at(self, index: Integer[np.ndarray, " P"]) -> dict[str, Labels]:
        """Labels of some test clips."""
        return {label.name: label.test[index] for label in self.labels}

    def of_block(self, block: str) -> set[str]:
        """Names of the labels that one factor should tell."""
        return {label.name for label in self.labels if label.block == block}

    def factors(self, index: Integer[np.ndarray, " P"]) -> Factors:
        """Factors of some test clips."""
        return self.context.test_factors[index]

    def pick(self, name: str, index: Integer[np.ndarray, " P"]) -> Any:
        """An array of the test split at some clips, or None."""
        return self.context.pick(name, index)

    def read(
        self, x: Clips, giver: Integer[np.ndarray, " P"], length: Lengths | None = None
    ) -> dict[str, Labels]:
        """What judges see in decoded clips.

        Args:
          x: clips.
          giver: of their dynamics, whose gaps they are seen with.
          length: number of real steps; None: that of the giver.
        """
        length = self.pick("length", giver) if length is None else length
        mask = self.pick("mask", giver)
        return read_labels(self.context, self.labels, self.judges, x, length, mask)

    def add(self, name: str, percent: float, label: Label) -> None:
        """A percentage and what a random reader would give."""
        self.metrics[f"{name}_percent"] = percent
        self.metrics[f"{name}_chance_percent"] = label.chance_percent

    def add_score(self, name: str, cells: Sequence[tuple[float, float]]) -> None:
        """Mean over all pairs of an intervention and a label: 100 is a perfect model."""
        if cells:
            score, chance = np.mean(np.array(cells), axis=0)
            self.metrics[f"{name}_score_percent"] = float(score)
            self.metrics[f"{name}_score_chance_percent"] = float(chance)

    def add_cycle(
        self, name: str, x: Clips, wanted: Factors, giver: Integer[np.ndarray, " P"]
    ) -> None:
        """Whether decoded clips have the factors that they were decoded from."""
        size = self.context.settings.batch_size
        length, mask = (self.pick(key, giver) for key in ("length", "mask"))
        found = encode_clips(self.context.model, x, length, mask, batch_size=size)
        for key, error in cycle_errors(found, wanted, length).items():
            self.metrics[f"{name}_{key}"] = error


def interventions(context: Context) -> Outcome:
    """Swap and sample interventions on either factor and on single labels; cycle consistency."""
    if reason := context.why_no_swaps():
        return {}, [f"interventions skipped: {reason}"]
    labels, notes = collect_labels(context)
    if not labels:
        return {}, [*notes, "interventions skipped: the clips have no labels that vary"]
    trial = _Trial(context, labels, train_readers(context, labels), *_pairs(context, labels))
    _judge_real(trial)
    _swap_blocks(trial)
    alone = [label for label in labels if label.whole]
    codes = assign_codes(*codes_tell(context, alone))
    if len(alone) < 2:
        notes.append(f"multi-factor interventions skipped: {len(alone)} label; they need 2 or more")
        alone = []
    for place, label in enumerate(alone):
        trial.metrics[f"{label.name}_codes_count"] = float((codes == place).sum())
        if not (codes == place).any():
            notes.append(f"no code tells most about {label.name}: nothing is changed for it")
    _swap_codes(trial, alone, codes)
    try:
        _sample(trial, alone, codes)
    except ValueError as error:  # such as a prior that knows one length
        notes.append(f"sample interventions skipped: {error}")
    if context.why_no_prior:
        notes.append(f"sample interventions draw codes of training clips: {context.why_no_prior}")
    return trial.metrics, notes


def codes_tell(
    context: Context, labels: Sequence[Label]
) -> tuple[Float[np.ndarray, "E K"], Float[np.ndarray, " K"]]:
    """What each code tells about each label of the training clips, as shares of its entropy.

    Returns:
      The shares, and for each label the largest that codes of other clips have by chance.
    """
    codes, known = clip_table(context.codes("train"), context, labels, "train")
    bins, classes = measure.bin_codes(codes), measure.bin_factors(known)
    shuffled = np.random.default_rng(context.settings.seed).permutation(bins)
    (told, entropy), (chance, _) = (
        measure.mutual_information(side, classes) for side in (bins, shuffled)
    )
    return told / entropy, (chance / entropy).max(0)


def assign_codes(
    told: Float[np.ndarray, "E K"], chance: Float[np.ndarray, " K"]
) -> Integer[np.ndarray, " E"]:
    """The label that each code tells most about; -1 where it tells no more than chance.

    Args:
      told: of each code about each label, see `codes_tell`.
      chance: what a code tells at most that tells nothing.
    """
    above = np.where(told > chance, told, 0.0)
    return np.where(above.max(1) > 0, above.argmax(1), -1)


def exchange_codes(base: Factors, donor: Factors, codes: Bool[np.ndarray, " E"]) -> Factors:
    """Factors with some codes of a donor, dynamic ones at all steps.

    Args:
      base: gives all other codes.
      donor: gives the codes that are True.
      codes: which ones; those of ``s`` first, then those of ``d``.
    """
    num_static = base.static.shape[-1]
    return Factors(
        static=np.where(codes[:num_static], donor.static, base.static),
        dynamic=np.where(codes[num_static:], donor.dynamic, base.dynamic),
    )


def swap_hits(
    judged: Mapping[str, Labels],
    own: Mapping[str, Labels],
    given: Mapping[str, Labels],
    changed: Collection[str],
) -> dict[str, float]:
    """Percent of swaps that show the label they should; only pairs that differ in it count.

    Args:
      judged: what judges see in the decoded clips.
      own: labels of the clips that were intervened on.
      given: labels of the donors.
      changed: names of the labels that should be the donor's; the others should stay.

    Returns:
      One percentage a label; labels in which no pair differs are left out.
    """
    hits = {}
    for name, seen in judged.items():
        differ = own[name] != given[name]
        if differ.any():
            wanted = given[name] if name in changed else own[name]
            hits[name] = 100.0 * float((seen == wanted)[differ].mean())
    return hits


def _pairs(context: Context, labels: Sequence[Label]) -> tuple[np.ndarray, np.ndarray]:
    """Clips that are intervened on and donors that differ in as many labels as they can."""
    known = [label.test[context.trial] for label in labels]
    pairs = make_pairs(
        len(context.trial), context.settings.num_swaps, seed=context.settings.seed, labels=known
    )
    return context.trial[pairs[0]], context.trial[pairs[1]]


def _judge_real(trial: _Trial) -> None:
    """What judges see in the real clips: the most that any intervention can reach."""
    x = trial.context.test["x"][trial.base]
    seen, own = trial.read(x, trial.base), trial.labels_at(trial.base)
    for label in trial.labels:
        accuracy = 100.0 * float(np.mean(seen[label.name] == own[label.name]))
        trial.add(f"judged_{label.name}_accuracy", accuracy, label)


def _swap_blocks(trial: _Trial) -> None:
    """Exchange ``s``, then ``d``; encode what was decoded of the first and of unchanged factors."""
    decode, base, donor = trial.context.decode, trial.base, trial.donor
    own, given = trial.factors(base), trial.factors(donor)
    mixed = mix(static_from=given, dynamic_from=own)
    x = decode(mixed, donor, base)
    cells = _swapped(trial, x, base, "swap_s", trial.labels, trial.of_block("static"))
    trial.add_cycle("swap_cycle", x, mixed, base)
    x = decode(mix(static_from=own, dynamic_from=given), base, donor)
    cells += _swapped(trial, x, donor, "swap_d", trial.labels, trial.of_block("dynamic"))
    trial.add_score("swap_blocks", cells)
    trial.add_cycle("cycle", decode(own, base, base, "random"), own, base)


def _swap_codes(trial: _Trial, alone: Sequence[Label], codes: np.ndarray) -> None:
    """Exchange the codes of one label after the other."""
    base, donor = trial.factors(trial.base), trial.factors(trial.donor)
    lengths = [trial.pick("length", index) for index in (trial.base, trial.donor)]
    cells = []
    for place, label in enumerate(alone):
        chosen = codes == place
        length = _shared_length(base, chosen, *lengths)
        # Most codes stay those of the clip itself, so that all noise is its own.
        x = trial.context.decode(exchange_codes(base, donor, chosen), trial.base, trial.base)
        name = f"swap_{label.name}_codes"
        cells += _swapped(trial, x, trial.base, name, alone, {label.name}, length)
    trial.add_score("swap_codes", cells)


def _shared_length(
    base: Factors, codes: np.ndarray, own: Lengths | None, given: Lengths | None
) -> Lengths | None:
    """Steps for which there are courses, where some codes are exchanged; None: all steps."""
    if given is None or not codes[base.static.shape[-1] :].any():
        return own
    return given if own is None else np.minimum(own, given)


def _swapped(
    trial: _Trial,
    x: Clips,
    giver: Integer[np.ndarray, " P"],
    name: str,
    labels: Sequence[Label],
    changed: Collection[str],
    length: Lengths | None = None,
) -> list[tuple[float, float]]:
    """Note which labels decoded swaps show; the score and chance of each."""
    seen = trial.read(x, giver, length)
    hits = swap_hits(seen, trial.labels_at(trial.base), trial.donor_labels, changed)
    cells = []
    for label in labels:
        if label.name in hits:
            verb = "taken" if label.name in changed else "kept"
            trial.add(f"{name}_{label.name}_{verb}", hits[label.name], label)
            cells.append((hits[label.name], label.chance_percent))
    return cells


def _sample(trial: _Trial, alone: Sequence[Label], codes: np.ndarray) -> None:
    """Draw ``s`` for the dynamics of the clips, then ``d`` for their ``s``, then single codes.

    Raises:
      ValueError: the prior cannot sample what it should.
    """
    context, base = trial.context, trial.factors(trial.base)
    seed, steps = context.settings.seed, base.dynamic.shape[1]
    own = given = trial.pick("length", trial.base)
    if context.prior is None:
        places = np.random.default_rng(seed).choice(len(context.train_factors), len(base))
        drawn, given = context.train_factors[places], context.train.get("length")
        given = None if given is None else given[places]
        other_static = mix(static_from=drawn, dynamic_from=base)
        other_dynamic = mix(static_from=base, dynamic_from=drawn)
    else:
        drawn = context.prior.sample(len(base), steps, seed=seed, lengths=own)
        other_static = context.prior.sample_static(base.dynamic, seed=seed, lengths=own)
        other_dynamic = context.prior.sample_dynamic(base.static, steps, seed=seed, lengths=own)
    blocks = [trial.of_block(name) for name in ("static", "dynamic")]
    cells = _sampled(trial, other_static, "sample_s", trial.labels, blocks[0], own)
    every = np.ones(base.static.shape[-1] + base.dynamic.shape[-1], bool)
    length = _shared_length(base, every, own, given)
    cells += _sampled(trial, other_dynamic, "sample_d", trial.labels, blocks[1], length)
    trial.add_score("sample_blocks", cells)
    cells = []
    for place, label in enumerate(alone):
        chosen, name = codes == place, f"sample_{label.name}_codes"
        length = _shared_length(base, chosen, own, given)
        mixed = exchange_codes(base, drawn, chosen)
        cells += _sampled(trial, mixed, name, alone, {label.name}, length)
    trial.add_score("sample_codes", cells)


def _sampled(
    trial: _Trial,
    mixed: Factors,
    name: str,
    labels: Sequence[Label],
    changed: Collection[str],
    length: Lengths | None,
) -> list[tuple[float, float]]:
    """Read what was decoded of drawn codes; the score and chance of each label.

    A label that was drawn anew should differ from the old one as often as those of any two clips.
    """
    x = trial.context.decode(mixed, trial.base, trial.base, "random")
    seen, own = trial.read(x, trial.base, length), trial.labels_at(trial.base)
    cells = []
    for label in labels:
        same = 100.0 * float(np.mean(seen[label.name] == own[label.name]))
        if label.name not in changed:
            trial.add(f"{name}_{label.name}_kept", same, label)
            cells.append((same, label.chance_percent))
            continue
        share = np.unique(label.test, return_counts=True)[1] / len(label.test)
        expected = 100.0 * float((share**2).sum())
        trial.metrics[f"{name}_{label.name}_changed_percent"] = 100.0 - same
        trial.metrics[f"{name}_{label.name}_changed_expected_percent"] = 100.0 - expected
        cells.append((100.0 - abs(same - expected), 100.0))
    return cells
