"""``--mode=explore``: components of the factors, what they mean, and pictures of moving them."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from diffsda_jax import experiment as experiments
from diffsda_jax import runs
from diffsda_jax.evals import exploration, report
from diffsda_jax.evals.component_names import Attribute, find_meaning, make_attributes
from diffsda_jax.evals.component_stability import stability_over_models, stability_over_samples
from diffsda_jax.evals.enrolment import enrol_unseen
from diffsda_jax.evals.exploration import Components
from diffsda_jax.evals.exploration_report import FactorReport, Stability, write_reports
from diffsda_jax.evals.interface import Lengths, encode_clips
from diffsda_jax.evals.judges import Judge, make_judge
from diffsda_jax.evals.pictures import Picture, write_gif
from diffsda_jax.evals.swap import decode_factors, make_start
from diffsda_jax.evals.traversal_pictures import draw_series, draw_videos, traverse
from diffsda_jax.experiment import Experiment
from diffsda_jax.explore_options import check_options
from diffsda_jax.factors import Factors
from diffsda_jax.pipeline import DiffSDA
from diffsda_jax.prior_api import Prior

logger = logging.getLogger(__name__)

FOLDER = "explore"


@dataclasses.dataclass
class ExploreResult:
    """What an exploration gives.

    Attributes:
      reports: of ``static`` and ``dynamic``.
      metrics: flat.
      files: what was written, ``metrics.json`` first.
      notes: where codes came from, and what was skipped and why.
    """

    reports: dict[str, FactorReport]
    metrics: dict[str, float]
    files: list[Path]
    notes: list[str]


def run_explore(config: ConfigDict, workdir: str | Path) -> ExploreResult:
    """Explores the newest checkpoint of a workdir.

    Args:
      config: of the run; its section ``explore`` says how.
      workdir: with a trained or converted checkpoint, and maybe a prior.

    Returns:
      Components, their meaning and the files, which lie in ``<workdir>/explore/<step>`` (with the
      decomposition and the level in the name of the folder where they are not the defaults).

    Raises:
      ValueError, FileNotFoundError: as ``runs.run_eval``; an option that is not allowed.
    """
    options = check_options(config)
    experiment, model = runs.load_trained(config, workdir)
    workdir = Path(workdir).expanduser()
    others = {folder: _load_other(folder, model, config) for folder in options.other_workdirs}
    explorer = Explorer(experiment, model, workdir, others)
    reports = {factor: explorer.report(factor) for factor in exploration.FACTORS}
    place = f"{int(model.meta.get('step', 0)):08d}"
    if options.decomposition != "pca":
        place += f"-{options.decomposition.rpartition(':')[2]}"
    if options.dynamic_over != "step":
        place += f"-{options.dynamic_over}"
    return explorer.write(reports, workdir / FOLDER / place)


def _load_other(folder: str, model: DiffSDA, config: ConfigDict) -> DiffSDA:
    """A model to compare with; refused if it takes other data, or data in other units."""
    other = DiffSDA.from_checkpoint(Path(folder).expanduser(), weights=config.eval.weights)
    ours, theirs = (
        (one.spec.kind, tuple(one.spec.shape), one.normalizer and one.normalizer.to_dict())
        for one in (model, other)
    )
    if ours != theirs:
        raise ValueError(
            f"explore.other_workdirs names {folder}, whose model takes other data than this one "
            "(kind, step shape or normalisation differ): name runs of the same config with another "
            "seed."
        )
    return other


class View(NamedTuple):
    """What one model makes of the data.

    Attributes:
      fitted: factors that components are fitted to.
      length: number of real steps of these, or None for all. Sequences of the prior have those of
        training clips.
      test: factors of the test clips.
      bounded: d is the tanh of its codes.
    """

    fitted: Factors
    length: Lengths | None
    test: Factors
    bounded: bool


class Explorer:
    """One model, the data it is explored on, and the clips that are moved."""

    def __init__(
        self, experiment: Experiment, model: DiffSDA, workdir: Path, others: dict[str, DiffSDA]
    ):
        """Loads the data and trains the judge, if there are labels.

        Args:
          experiment: whose data are used.
          model: to be explored.
          workdir: its folder, where a prior is looked for.
          others: models to compare with, by their folders.

        Raises:
          ValueError: ``explore.codes_from`` asks for a prior, and there is none that can be used.
        """
        config = experiment.config
        self.experiment, self.options = experiment, config.explore
        self.model, self.settings = experiments.as_evaluated(config, model)
        runner = runs.EvalRunner(experiment)
        self.train = runner.load("train", config.eval.num_train_clips)
        self.test = runner.load(config.eval.split, config.eval.num_clips)
        self.notes: list[str] = []
        readers, trial, notes = enrol_unseen(self.train, self.test)
        judge = make_judge(readers, self.settings.judge_steps, self.settings.seed)
        self._note(*(notes if judge is not None else []))
        self._choose(trial)
        self.to_frames = self._frame_decoder(runner)
        self.attributes = self._attributes(judge)
        prior = self._load_prior(model, workdir)  # which knows the model as it was loaded
        self.view = self._look(self.model, prior, workdir.name)
        places = ((one, Path(folder).expanduser()) for folder, one in others.items())
        self.others = [self._look(one, self._load_prior(one, at), at.name) for one, at in places]

    def _note(self, *notes: str) -> None:
        for note in notes:
            self.notes.append(note)
            logger.info("exploration: %s", note)

    def _choose(self, trial: np.ndarray) -> None:
        """Picks the clips that are moved, and the noise that they are decoded from."""
        label = self.test.get("static_label")
        rng = np.random.default_rng(self.settings.seed)
        count = max(self.options.num_traversals, self.options.num_clips)
        donors = report.choose_donors(
            len(trial), count, None if label is None else label[trial], rng
        )
        index = trial[donors]
        known = ("x", "length", "mask")
        self.moved = {key: self.test[key][index] for key in known if key in self.test}
        self.moved_factors = self._encode(self.model, self.moved)
        own = (self.moved["x"], self.moved_factors, self.moved.get("length"))
        self.start = make_start(
            self.model,
            self.settings.start,
            self.moved["x"].shape,
            target=own,
            donor=own,
            num_steps=self.settings.num_steps,
            seed=self.settings.seed,
            batch_size=self.settings.batch_size,
        )

    def _frame_decoder(self, runner: runs.EvalRunner):
        """What makes frames of decoded clips, or None where there are none."""
        if self.experiment.element.kind != "video":
            return None
        if runner.domain.frame_decoder is not None:
            return runner.domain.frame_decoder
        channels = self.experiment.element.shape[-1]
        if channels in (1, 3):
            return lambda x: x
        self._note(
            f"pictures skipped: {channels} channels are no frames; set first_stage.checkpoint"
        )
        return None

    def _attributes(self, judge: Judge | None) -> list[Attribute]:
        source = self.experiment.sources[self.experiment.config.eval.split]
        element = self.experiment.element
        names = {"static_label": element.static_names, "dynamic_label": element.dynamic_names}
        found = make_attributes(
            self.test,
            self.moved,
            judge=judge,
            to_frames=self.to_frames,
            names=names | getattr(source, "factor_names", {}),
            classes=[task.target for task in source.tasks if task.kind != "regression"],
        )
        if not found:
            self._note("components have no names: the test clips have no labels and no positions")
        return found

    def _encode(self, model: DiffSDA, data: dict[str, np.ndarray]) -> Factors:
        return encode_clips(
            model,
            data["x"],
            data.get("length"),
            data.get("mask"),
            batch_size=self.settings.batch_size,
        )

    def _look(self, model: DiffSDA, prior: Prior | None, name: str) -> View:
        """Factors of the test clips, and some for components: of the prior, or of real clips."""
        test, count = self._encode(model, self.test), self.options.num_codes
        if prior is not None:
            index = np.random.default_rng(self.settings.seed).choice(len(self.train["x"]), count)
            length = self.train["length"][index] if "length" in self.train else None
            steps, seed = self.test["x"].shape[1], self.settings.seed
            drawn = prior.sample(count, steps, seed=seed, lengths=length)
            factors = Factors(static=np.asarray(drawn.static), dynamic=np.asarray(drawn.dynamic))
            self._note(f"{name}: codes are of {len(factors)} sequences from the prior")
            return View(factors, length, test, model.bounded_dynamic)
        index = np.arange(min(count, len(self.train["x"])))
        clips = {key: self.train[key][index] for key in self.moved}
        self._note(f"{name}: codes are of {len(index)} encoded training clips")
        return View(self._encode(model, clips), clips.get("length"), test, model.bounded_dynamic)

    def _load_prior(self, model: DiffSDA, workdir: Path) -> Prior | None:
        """The prior of a model as it was loaded, or None where none is wanted or can be used.

        Raises:
          ValueError: the option asks for the prior, and there is none that can be used.
        """
        chosen = self.options.codes_from
        if chosen == "data":
            return None
        prior, why_not = runs.load_prior(workdir, model, self.experiment.config.eval.weights)
        why_not = why_not or f"{workdir} has no prior; --mode=prior trains one"
        if prior is None and chosen == "prior":
            raise ValueError(f"explore.codes_from is 'prior', but {why_not}; or use 'auto'.")
        if prior is None:
            self._note(f"no codes from a prior: {why_not}")
        return prior

    def fit(self, factor: str, view: View) -> tuple[Components, exploration.Codes]:
        """Components of one factor and the codes that they are fitted to, at most ``num_codes``."""
        codes = self._codes(view, view.fitted, factor, view.length)
        rng = np.random.default_rng(self.settings.seed)
        chosen = np.sort(rng.permutation(len(codes.values))[: self.options.num_codes])
        codes = codes.take(chosen)
        components = exploration.fit_components(
            codes,
            factor,
            decomposition=self.options.decomposition,
            num_components=self.options.num_components,
            seed=self.settings.seed,
        )
        return components, codes

    def decode(self, factors: Sequence[Factors]) -> Float[np.ndarray, "M B V *element"]:
        """Clips of factors of the moved clips (or the first of them), each from its own noise."""
        static, dynamic = (
            np.concatenate([getattr(one, name) for one in factors])
            for name in ("static", "dynamic")
        )
        start = self.start[: len(factors[0])]
        x = decode_factors(
            self.model,
            Factors(static=static, dynamic=dynamic),
            np.concatenate([start] * len(factors)),
            num_steps=self.settings.num_steps,
            batch_size=self.settings.batch_size,
        )
        return x.reshape(len(factors), *start.shape)

    def report(self, factor: str) -> FactorReport:
        """Everything about the components of one factor."""
        components, codes = self.fit(factor, self.view)
        length = self.test.get("length")
        test_codes = self._codes(self.view, self.view.test, factor, length)
        meaning = find_meaning(
            components,
            test_codes,
            self.attributes,
            self.moved_factors,
            self.decode,
            length=length,
            moved_length=self.moved.get("length"),
            num_random=self.options.num_random,
            seed=self.settings.seed,
        )
        found = stability_over_samples(
            components,
            codes,
            decomposition=self.options.decomposition,
            num_refits=self.options.num_refits,
            seed=self.settings.seed,
        )
        models = self._over_models(factor, components.coordinates(test_codes.values))
        return FactorReport(components, meaning, Stability(*found), models)

    def _over_models(self, factor: str, coordinates: Float[np.ndarray, "P K"]) -> Stability | None:
        """How much of the components other models have, or None if none is named."""
        found = []
        for view in self.others:
            components, _ = self.fit(factor, view)
            values = self._codes(view, view.test, factor, self.test.get("length")).values
            found.append(
                stability_over_models(coordinates, components, values, seed=self.settings.seed)
            )
        if not found:
            return None
        each, chance = zip(*found, strict=True)
        return Stability(np.mean(each, axis=0), float(np.mean(chance)))

    def _codes(
        self, view: View, factors: Factors, factor: str, length: Lengths | None
    ) -> exploration.Codes:
        level = self.options.dynamic_over
        return exploration.gather_codes(factors, factor, level, length, view.bounded)

    def draw(self, side: FactorReport) -> tuple[dict[str, Picture], dict[str, list[Picture]]]:
        """Grids of a few clips, a row a component: pictures, and frames of animations, by name."""
        options, element = self.options, self.experiment.element
        if element.kind == "video" and self.to_frames is None:
            return {}, {}
        factors = self.moved_factors[: options.num_clips]
        moved, columns = traverse(side.components, factors, options.num_alphas, options.alpha)
        clips = self.decode(moved)
        clips = clips.reshape(len(side.components), len(columns), *clips.shape[1:])
        rows = side.short_titles()
        names = [f"{side.components.factor}_{clip}" for clip in range(len(factors))]
        if element.kind == "video":
            drawn = draw_videos(clips, rows, columns, self.to_frames)
            stills, animations = zip(*drawn, strict=True)
            return dict(zip(names, stills, strict=True)), dict(zip(names, animations, strict=True))
        pictures = draw_series(
            clips,
            rows,
            columns,
            denormalize=self.experiment.normalizer.invert,
            length=self.moved["length"][: len(factors)] if "length" in self.moved else None,
            feature_names=element.feature_names,
        )
        return dict(zip(names, pictures, strict=True)), {}

    def write(self, reports: dict[str, FactorReport], directory: Path) -> ExploreResult:
        """Writes metrics, tables, components and pictures, and prints the tables."""
        settings = self.options.to_dict() | {
            "solver": self.settings.solver,
            "num_steps": self.settings.num_steps,
            "start": self.settings.start,
            "seed": self.settings.seed,
        }
        metrics, text, files = write_reports(
            list(reports.values()),
            directory,
            form=self.settings.form,
            settings=settings,
            notes=self.notes,
        )
        print(text, flush=True)
        for side in reports.values():
            images, animations = self.draw(side)
            files += report.write_pictures(images, directory)
            files += [
                write_gif(frames, directory / f"{name}.gif") for name, frames in animations.items()
            ]
        for file in files:
            logger.info("wrote %s", file)
        return ExploreResult(reports, metrics, files, self.notes)
