"""The paper's supervised probes of frozen factors: small networks, trained over several seeds.

All repeats of a probe are trained and read in one compiled program. They say how much of a task the
factors hold; chance levels stand beside every number, since classes are rarely balanced.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Integer, Num
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.preprocessing import StandardScaler

from diffsda_jax.evals.choices import check_choice
from diffsda_jax.evals.context import FORMS
from diffsda_jax.evals.interface import Lengths, valid_steps
from diffsda_jax.evals.probe_training import ProbeSpec, fit_and_read
from diffsda_jax.evals.probes import chance_level
from diffsda_jax.factors import Factors


@dataclass(frozen=True)
class TaskResult:
    """Scores of one probe.

    Attributes:
      metrics: mean and standard deviation over repeats (n - 1; NaN for one repeat) by name.
        Chance levels are named ``..._chance...`` and have no spread.
      per_seed: score of each repeat by name, in the order of the seeds.
    """

    metrics: Mapping[str, tuple[float, float]]
    per_seed: Mapping[str, tuple[float, ...]]


def task_probe(
    spec: ProbeSpec,
    train: Factors,
    test: Factors,
    train_target: Num[np.ndarray, "N *blocks"],
    test_target: Num[np.ndarray, "M *blocks"],
    *,
    train_length: Integer[np.ndarray, " N"] | None = None,
    test_length: Integer[np.ndarray, " M"] | None = None,
    form: str = "corrected",
) -> TaskResult:
    """Trains a probe on frozen factors of the training split and scores it on the test split.

    Features and the target of a regression are standardised by training statistics.

    Args:
      spec: which probe, and how it is trained.
      train: factors that the probe is trained on.
      test: factors that it is scored on.
      train_target: ``classes``: integers ``[N]``; ``regression``: ``[N, K]``, one number for each
        of K blocks of ``V // K`` steps (67 blocks of 10 h; steps after the last whole block are
        not used); ``binary``: 0 or 1, ``[N]``.
      test_target: the same for the test split. Classes not seen in training count as errors.
      train_length: number of real steps; None means all V. Blocks of padding only are left out.
      test_length: the same for the test split.
      form: ``corrected`` starts every repeat from fresh weights; ``reference`` reuses the
        classifier, so that a repeat goes on from the weights of the one before and the repeats are
        not independent (optimiser and learning rate start anew: own reading).

    Returns:
      ``classes``: ``accuracy_percent``; ``regression``: ``mae`` in the units of the target;
      ``binary``: ``auprc_percent`` and ``auroc_percent``; and the chance level of each: the most
      frequent class or one over the classes (see `chance_level`), the error of the training mean,
      the share of positives, and 50.

    Raises:
      ValueError: an unknown form, or targets that do not fit the kind.

    References:
      DiffSDA (arXiv 2510.05717), time-series tasks on Air Quality, PhysioNet and ETTh1.
    """
    check_choice("form", form, FORMS)
    sides = ((train, train_target, train_length), (test, test_target, test_length))
    for (factors, target, _), split in zip(sides, ("train", "test"), strict=True):
        _check_target(spec.kind, split, len(factors), target)
    task = _PREPARE[spec.kind](*sides)
    outputs = fit_and_read(
        spec,
        form == "reference",
        task.num_outputs,
        *jax.tree.map(jnp.asarray, (task.inputs, task.goal, task.test_inputs)),
        jnp.asarray(spec.seeds, jnp.uint32),
    )
    repeats = [task.score(output) for output in np.asarray(outputs)]
    per_seed = {name: tuple(repeat[name] for repeat in repeats) for name in repeats[0]}
    metrics = {name: (value, 0.0) for name, value in task.chance.items()}
    for name, values in per_seed.items():
        spread = np.std(values, ddof=1) if len(values) > 1 else np.nan
        metrics[name] = float(np.mean(values)), float(spread)
    return TaskResult(metrics=metrics, per_seed=per_seed)


def block_features(
    factors: Factors, num_blocks: int, length: Lengths | None = None
) -> tuple[Float[np.ndarray, "N K E"], Bool[np.ndarray, "N K"]]:
    """Features of blocks of steps: mean of ``d`` over the real steps of the block, then ``s``.

    The mean is our own reading of "from (s, d)"; ``s`` is the same in all blocks.

    Args:
      factors: of N sequences of V steps.
      num_blocks: number of blocks K; each has ``V // K`` steps, the steps after them are not used.
      length: number of real steps; None means all V.

    Returns:
      Features ``[N, K, D + S]`` and where a block has a real step.

    Raises:
      ValueError: there are more blocks than steps.
    """
    static, dynamic = np.asarray(factors.static), np.asarray(factors.dynamic)
    num_items, num_steps, width = dynamic.shape
    size = num_steps // num_blocks
    if not size:
        raise ValueError(
            f"regression probe: {num_blocks} blocks of {num_steps} steps; allowed is at most one "
            f"block a step; give targets of longer blocks."
        )
    used = slice(0, num_blocks * size)
    valid = valid_steps(dynamic.shape, length)[:, used, None]
    total = np.where(valid, dynamic[:, used], 0).reshape(num_items, num_blocks, size, width).sum(2)
    count = valid.reshape(num_items, num_blocks, size, 1).sum(2)
    shared = np.broadcast_to(static[:, None], (num_items, num_blocks, static.shape[1]))
    features = np.concatenate([total / np.maximum(count, 1), shared], axis=-1)
    return features, count[..., 0] > 0


@dataclass(frozen=True)
class _Task:
    """What a kind of probe is trained on, reads and is scored by."""

    inputs: tuple[np.ndarray, np.ndarray | None]  # features, which steps are real
    goal: np.ndarray
    test_inputs: tuple[np.ndarray, np.ndarray | None]
    score: Callable[[np.ndarray], dict[str, float]]  # of the outputs on the test items
    chance: Mapping[str, float]
    num_outputs: int = 1


_Side = tuple[Factors, np.ndarray, np.ndarray | None]  # of one split: factors, target, length


def _classes_task(train: _Side, test: _Side) -> _Task:
    """Labels from s."""
    (factors, label, _), (test_factors, test_label, _) = train, test
    classes, goal = np.unique(label, return_inverse=True)
    scaler = StandardScaler().fit(np.asarray(factors.static))

    def score(outputs: Float[np.ndarray, "M K"]) -> dict[str, float]:
        right = classes[outputs.argmax(-1)] == test_label
        return {"accuracy_percent": 100.0 * float(right.mean())}

    return _Task(
        inputs=(_scaled(scaler, factors.static), None),
        goal=goal.astype(np.int32),
        test_inputs=(_scaled(scaler, test_factors.static), None),
        score=score,
        chance={"accuracy_chance_percent": chance_level(label, test_label)},
        num_outputs=len(classes),
    )


def _regression_task(train: _Side, test: _Side) -> _Task:
    """A number for each block with a real step, from the features of the block."""
    (features, target), (test_features, test_target) = (
        _real_blocks(factors, target, length) for factors, target, length in (train, test)
    )
    scaler = StandardScaler().fit(features)
    mean, spread = target.mean(dtype=np.float64), target.std(dtype=np.float64) or 1.0

    def score(outputs: Float[np.ndarray, "M 1"]) -> dict[str, float]:
        return {"mae": float(np.abs(outputs[:, 0] * spread + mean - test_target).mean())}

    return _Task(
        inputs=(_scaled(scaler, features), None),
        goal=((target - mean) / spread).astype(np.float32),
        test_inputs=(_scaled(scaler, test_features), None),
        score=score,
        chance={"mae_chance": float(np.abs(test_target - mean).mean())},
    )


def _binary_task(train: _Side, test: _Side) -> _Task:
    """A yes or no from the course of d, with s beside it in every step."""
    (factors, target, length), (test_factors, test_target, test_length) = train, test
    valid, test_valid = (
        valid_steps(side.dynamic.shape, steps)
        for side, steps in ((factors, length), (test_factors, test_length))
    )
    static_scaler = StandardScaler().fit(np.asarray(factors.static))
    dynamic_scaler = StandardScaler().fit(np.asarray(factors.dynamic)[valid])

    def course(side: Factors, real: np.ndarray) -> np.ndarray:
        dynamic = np.where(real[..., None], side.dynamic, 0)
        scaled = _scaled(dynamic_scaler, dynamic.reshape(-1, dynamic.shape[2]))
        static = _scaled(static_scaler, side.static)
        shared = np.broadcast_to(static[:, None], (*dynamic.shape[:2], static.shape[1]))
        return np.concatenate([scaled.reshape(dynamic.shape), shared], axis=-1)

    def score(outputs: Float[np.ndarray, "M 1"]) -> dict[str, float]:
        return {
            "auprc_percent": 100.0 * float(average_precision_score(test_target, outputs[:, 0])),
            "auroc_percent": 100.0 * float(roc_auc_score(test_target, outputs[:, 0])),
        }

    return _Task(
        inputs=(course(factors, valid), valid),
        goal=target.astype(np.float32),
        test_inputs=(course(test_factors, test_valid), test_valid),
        score=score,
        chance={
            "auprc_chance_percent": 100.0 * float(test_target.mean()),
            "auroc_chance_percent": 50.0,
        },
    )


_PREPARE = {"classes": _classes_task, "regression": _regression_task, "binary": _binary_task}


def _scaled(scaler: StandardScaler, values: Any) -> Float[np.ndarray, "N E"]:
    return scaler.transform(np.asarray(values)).astype(np.float32)


def _real_blocks(
    factors: Factors, target: Num[np.ndarray, "N K"], length: Lengths | None
) -> tuple[Float[np.ndarray, "P E"], Num[np.ndarray, " P"]]:
    """Features and targets of the blocks with a real step."""
    features, real = block_features(factors, target.shape[1], length)
    return features[real], target[real]


def _check_target(kind: str, split: str, num_items: int, target: np.ndarray) -> None:
    """Raise ValueError unless the target fits the factors and the kind of probe."""
    ndim, problem = 2 if kind == "regression" else 1, None
    found = np.unique(target).tolist()
    if target.ndim != ndim or len(target) != num_items:
        problem = (
            f"has shape {target.shape}",
            f"{num_items} sequences along the first of {ndim} axes",
        )
    elif kind == "binary" and found != [0, 1]:
        problem = f"holds {found[:4]}", "0 and 1, both of them present"
    elif kind == "classes" and split == "train" and len(found) < 2:
        problem = f"holds {found} only", "two classes or more"
    elif kind == "regression" and not np.isfinite(target).all():
        problem = f"has {int((~np.isfinite(target)).sum())} values that are not finite", "numbers"
    if problem:
        raise ValueError(
            f"{kind} probe: the {split} target {problem[0]}; allowed: {problem[1]}; check the "
            f"target, or leave the probe out for this data set."
        )
