"""Quality of samplers against how often they evaluate the network, and which one is enough."""

import dataclasses
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

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

    Better is fine. Tolerated is ``tolerance_percent`` of the reference's value, but at least the
    floor of ``LEAST_LOSS``: 0.002 of an error that is a share of the data's variance, 0.05 pixels,
    and one clip of a share of clips. ``distance_nmse``, to the clips of the reference from the
    same noise, may be ``tolerance_percent`` of their variance.

    Args:
      trial: what is judged.
      reference: Heun with many evaluations.
      num_clips: that shares are of.
      tolerance_percent: of the reference's value.

    Returns:
      Names of metrics; empty where all are within.
    """
    share, found = tolerance_percent / 100, []
    for name, (_, floor) in LEAST_LOSS.items():
        if name not in reference.metrics:
            continue
        value, before = trial.metrics[name], reference.metrics[name]
        if name == "distance_nmse":
            allowed = share
        else:
            allowed = max(share * abs(before), 100 / num_clips if floor is None else floor)
        worse = before - value if name.endswith(_MORE_IS_BETTER) else value - before
        if not worse <= allowed:  # not a number is worse
            found.append(name)
    return found


def choose(
    trials: Sequence[Trial], reference: Trial, num_clips: int, tolerance_percent: float
) -> Trial:
    """The trial with the fewest evaluations whose losses are tolerated; else the reference.

    Of several the one nearest to the reference's clips. Ancestral samplers, whose clips depend on
    more than the start noise, are not chosen: what is inverted would not come back.
    """
    within = [
        trial
        for trial in trials
        if trial.sampler.eta == 0 and not losses(trial, reference, num_clips, tolerance_percent)
    ]
    return min(
        [*within, reference],
        key=lambda trial: (trial.sampler.evaluations, trial.metrics["distance_nmse"]),
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
        if name.endswith("nmse") and max(shown) > min(shown) > 0:
            axis.set_yscale("log")
        axis.set_title(LEAST_LOSS[name][0], fontsize=9)
        axis.set_xlabel("evaluations", fontsize=8)
        axis.tick_params(labelsize=7, which="both")
    for axis in axes[len(names) :]:
        axis.set_axis_off()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    title = f"dashed: {name_of(reference.sampler)}, {reference.sampler.evaluations} evaluations"
    figure.suptitle(title, fontsize=9)
    return render_figure(figure)
