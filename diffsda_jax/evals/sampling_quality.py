"""Quality of samplers against how often they evaluate the network, and which one is enough."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from diffsda_jax.diffusion.samplers import SamplerSpec
from diffsda_jax.evals.pictures import Picture
from diffsda_jax.evals.plots import render_figure

# What is compared, its heading, and the least loss that counts whatever the reference's value.
LEAST_LOSS = {
    "random_nmse": ("rec. nmse", 0.002),
    "inverted_nmse": ("inverted nmse", 0.002),
    "static_kept_percent": ("s kept %", None),  # None: one clip
    "dynamic_kept_percent": ("d kept %", None),
    "both_kept_percent": ("both kept %", None),
    "trajectory_error_pixels": ("path, pixels", 0.05),
    "untracked_percent": ("untracked %", None),
    "distance_nmse": ("distance", None),
}
_MORE_IS_BETTER = "_kept_percent"


@dataclasses.dataclass(frozen=True)
class Trial:
    """One sampler and what was measured with it.

    Attributes:
      sampler: that was tried.
      metrics: by the names of ``LEAST_LOSS``, as far as the data allow, and ``seconds_per_clip``.
    """

    sampler: SamplerSpec
    metrics: Mapping[str, float]


def losses(trial: Trial, reference: Trial, num_clips: int, tolerance_percent: float) -> list[str]:
    """Where a trial is worse than the reference by more than is tolerated.

    Better is fine. Tolerated is ``tolerance_percent`` of the reference's value, or the floor of
    ``LEAST_LOSS`` where that is more: 0.002 of an error that is a share of the data's variance,
    0.05 pixels, and one clip of a share of clips. So an error of 0.01 may become 0.012, 20 % more;
    ``by_floor`` names such measures. ``distance_nmse``, to the clips of the reference from the
    same noise, may be ``tolerance_percent`` of their variance. What is not a number in the
    reference is not compared, see ``not_compared``.

    Args:
      trial: what is judged.
      reference: Heun with many evaluations.
      num_clips: that shares are of.
      tolerance_percent: of the reference's value.

    Returns:
      Names of metrics; empty where all are within.
    """
    found = []
    for name, worse in _worse_by(trial, reference).items():
        least = LEAST_LOSS[name][1]
        floor = 100 / num_clips if least is None else least
        floor = 0.0 if name == "distance_nmse" else floor
        if not worse <= max(floor, _share(name, reference, tolerance_percent)):  # NaN is worse
            found.append(name)
    return found


def by_floor(trial: Trial, reference: Trial, tolerance_percent: float) -> list[str]:
    """Names of metrics worse by more than ``tolerance_percent``, whatever their floor."""
    return [
        name
        for name, worse in _worse_by(trial, reference).items()
        if not worse <= _share(name, reference, tolerance_percent)
    ]


def not_compared(reference: Trial) -> list[str]:
    """Names of metrics that are not a number in the reference, so that nothing can be within."""
    return [name for name in LEAST_LOSS if math.isnan(reference.metrics.get(name, 0.0))]


def _worse_by(trial: Trial, reference: Trial) -> dict[str, float]:
    """How much worse a trial is in each metric that is compared; below 0 is better."""
    left_out, found = not_compared(reference), {}
    for name in LEAST_LOSS:
        if name in reference.metrics and name not in left_out:
            more = trial.metrics[name] - reference.metrics[name]
            found[name] = -more if name.endswith(_MORE_IS_BETTER) else more
    return found


def _share(name: str, reference: Trial, tolerance_percent: float) -> float:
    """What is tolerated of the reference's value, or of the variance of its clips."""
    whole = 1.0 if name == "distance_nmse" else abs(reference.metrics[name])
    return tolerance_percent / 100 * whole


def candidates(
    trials: Sequence[Trial], reference: Trial, num_clips: int, tolerance_percent: float
) -> list[Trial]:
    """The trials that cost less than the reference and whose losses are tolerated.

    The one with the fewest evaluations comes first, of several the one nearest to the reference's
    clips. Ancestral samplers, whose clips depend on more than the start noise, are left out: what
    is inverted would not come back.
    """
    within = [
        trial
        for trial in trials
        if trial.sampler.eta == 0
        and trial.sampler.evaluations < reference.sampler.evaluations
        and not losses(trial, reference, num_clips, tolerance_percent)
    ]
    return sorted(
        within, key=lambda trial: (trial.sampler.evaluations, trial.metrics["distance_nmse"])
    )


def name_of(sampler: SamplerSpec) -> str:
    """Solver and, where they are not the model's or the default, levels and noise."""
    parts = [sampler.solver]
    parts += [f"sigma_min {sampler.sigma_min:g}"] if sampler.sigma_min is not None else []
    parts += [f"eta {sampler.eta:g}"] if sampler.eta else []
    return ", ".join(parts)


def format_trials(
    trials: Sequence[Trial], reference: Trial, chosen: Trial, num_clips: int, tolerance: float
) -> str:
    """A Markdown table, the reference first; ``*`` marks losses that are too large.

    Args:
      trials: without the reference.
      reference: Heun with many evaluations.
      chosen: marked with ``<-``.
      num_clips: as in ``losses``.
      tolerance: percent, as in ``losses``.
    """
    names = [name for name in LEAST_LOSS if name in reference.metrics]
    head = ["sampler", "evaluations", *(LEAST_LOSS[name][0] for name in names), "ms a clip", ""]
    lines = [head, ["---"] * len(head)]
    for trial in (reference, *trials):
        lost = losses(trial, reference, num_clips, tolerance)
        cells = [f"{trial.metrics[name]:.4g}{'*' if name in lost else ''}" for name in names]
        milliseconds = f"{1e3 * trial.metrics['seconds_per_clip']:.3g}"
        mark = "<-" if trial is chosen else ""
        sampler = trial.sampler
        lines.append([name_of(sampler), str(sampler.evaluations), *cells, milliseconds, mark])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)


def draw_trials(trials: Sequence[Trial], reference: Trial, chosen: Trial) -> Picture:
    """Every metric against evaluations, a line for each solver; the chosen one is ringed."""
    names = [name for name in LEAST_LOSS if name in reference.metrics]
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.9 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(name_of(trial.sampler), []).append(trial)
    for axis, name in zip(axes, names, strict=False):
        for group, members in groups.items():
            members = sorted(members, key=lambda trial: trial.sampler.evaluations)
            evaluations = [trial.sampler.evaluations for trial in members]
            values = [trial.metrics[name] for trial in members]
            axis.plot(evaluations, values, "o-", markersize=3, linewidth=1, label=group)
        if name != "distance_nmse":
            axis.axhline(reference.metrics[name], color="#333333", linewidth=1, linestyle="--")
        ringed = (chosen.sampler.evaluations, chosen.metrics[name])
        if name != "distance_nmse" or chosen is not reference:
            axis.plot(*ringed, "o", markersize=10, fillstyle="none", color="#333333")
        shown = [trial.metrics[name] for trial in trials]
        if name.endswith("nmse") and max(shown) > 10 * min(shown) > 0:
            axis.set_yscale("log")
        axis.set_title(LEAST_LOSS[name][0], fontsize=9)
        axis.set_xlabel("evaluations", fontsize=8)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.tick_params(labelsize=7, which="both")
    for axis in axes[len(names) :]:
        axis.set_axis_off()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    title = f"dashed: {name_of(reference.sampler)}, {reference.sampler.evaluations} evaluations"
    figure.suptitle(title, fontsize=9)
    return render_figure(figure)
