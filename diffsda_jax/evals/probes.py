"""Linear probes: what a linear reader finds in each factor, against chance."""

import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Integer
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from diffsda_jax.evals.interface import Lengths, mean_over_steps, valid_steps
from diffsda_jax.factors import Factors

_MAX_ITERATIONS = 1000


@dataclass(frozen=True)
class ProbeResult:
    """Test accuracy of one linear probe.

    Attributes:
      accuracy_percent: share of test items read correctly.
      chance_percent: what a reader without the factor gets, see `chance_level`.
      converged: False when the solver stopped at its iteration limit.
    """

    accuracy_percent: float
    chance_percent: float
    converged: bool

    @property
    def over_chance_points(self) -> float:
        """Accuracy minus chance, in percentage points."""
        return self.accuracy_percent - self.chance_percent


def chance_level(train_label: Integer[np.ndarray, " N"], test_label: Integer[np.ndarray, " M"]):
    """Accuracy in percent on the test labels of a reader who sees only the training labels.

    The larger of one over the number of classes and the test share of the most frequent training
    class (averaged over classes that tie for it).
    """
    classes, counts = np.unique(train_label, return_counts=True)
    majority = classes[counts == counts.max()]
    majority_share = np.mean([np.mean(test_label == label) for label in majority])
    return 100.0 * float(max(majority_share, 1.0 / len(classes)))


def linear_probe(
    train_features: Float[np.ndarray, "N E"],
    train_label: Integer[np.ndarray, " N"],
    test_features: Float[np.ndarray, "M E"],
    test_label: Integer[np.ndarray, " M"],
) -> ProbeResult:
    """Multinomial logistic regression on features standardised by the training set.

    Raises:
      ValueError: the training labels hold fewer than two classes.
    """
    if len(np.unique(train_label)) < 2:
        raise ValueError(
            f"linear_probe: all {len(train_label)} training labels are {train_label[0]}; at least "
            f"two classes are needed; leave the probe out for this data set."
        )
    scaler = StandardScaler().fit(train_features)
    reader = LogisticRegression(max_iter=_MAX_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # reported by `converged`
        reader.fit(scaler.transform(train_features), train_label)
    accuracy = np.mean(reader.predict(scaler.transform(test_features)) == test_label)
    return ProbeResult(
        accuracy_percent=100.0 * float(accuracy),
        chance_percent=chance_level(train_label, test_label),
        converged=bool(np.max(reader.n_iter_) < _MAX_ITERATIONS),
    )


def regression_probe(
    train_features: Float[np.ndarray, "N E"],
    train_target: Float[np.ndarray, "N K"],
    test_features: Float[np.ndarray, "M E"],
    test_target: Float[np.ndarray, "M K"],
) -> float:
    """Test R^2 of a ridge regression on standardised features, averaged over the K targets.

    1 is perfect, 0 is as good as the mean of the test targets (chance); it can be negative.
    """
    scaler = StandardScaler().fit(train_features)
    reader = Ridge(alpha=1.0).fit(scaler.transform(train_features), train_target)
    return float(reader.score(scaler.transform(test_features), test_target))


def flatten_steps(
    dynamic: Float[np.ndarray, "N V D"], length: Lengths | None = None
) -> Float[np.ndarray, "N VD"]:
    """All dynamic factors of a sequence as one vector; padding steps are 0."""
    valid = valid_steps(dynamic.shape, length)[..., None]
    return np.where(valid, dynamic, 0).reshape(len(dynamic), -1)


def probe_factors(
    train: Factors, test: Factors, train_data: dict, test_data: dict
) -> tuple[dict[str, float], list[str]]:
    """All probes that the labels allow.

    Four readings, each against chance: s and d for the static label, s and d for the dynamic
    label. ``d`` is given both as its mean over the steps (``d_mean``) and as one standardised
    vector of all steps (``d_flat``). With ``position`` also R^2 of the place in each step from
    that step's ``d``, and of the whole trajectory from ``s``.

    Args:
      train: factors that the probes are fitted on.
      test: factors that they are scored on.
      train_data: may hold ``static_label``, ``dynamic_label`` ``[N]``, ``position`` ``[N, V, 2]``
        and ``length`` ``[N]``.
      test_data: the same for the test factors.

    Returns:
      ``(metrics, notes)``: names such as ``s_to_static_percent``,
      ``s_to_static_chance_percent``, ``s_to_static_over_chance_points``, ``d_to_position_r2``;
      and what was skipped and why.
    """
    features = {
        name: (_features(name, train, train_data), _features(name, test, test_data))
        for name in ("s", "d_mean", "d_flat")
    }
    metrics, notes = {}, []
    for target in ("static", "dynamic"):
        label = f"{target}_label"
        reason = _missing(label, train_data, test_data)
        if reason:
            notes.append(f"probes to {label} skipped: {reason}")
            continue
        for name, (on_train, on_test) in features.items():
            result = linear_probe(on_train, train_data[label], on_test, test_data[label])
            key = f"{name}_to_{target}"
            metrics[f"{key}_percent"] = result.accuracy_percent
            metrics[f"{key}_chance_percent"] = result.chance_percent
            metrics[f"{key}_over_chance_points"] = result.over_chance_points
            if not result.converged:
                notes.append(f"probe {key} stopped after {_MAX_ITERATIONS} iterations")
    if "position" in train_data and "position" in test_data:
        if len(test_data["position"]) < 2:
            notes.append("probes to position skipped: R^2 needs 2 test clips or more")
        else:
            metrics.update(_position_probes(train, test, train_data, test_data))
    return metrics, notes


def _features(name: str, factors: Factors, data: dict) -> np.ndarray:
    """The vectors ``[N, E]`` that one kind of probe reads."""
    if name == "s":
        return np.asarray(factors.static)
    reduce = mean_over_steps if name == "d_mean" else flatten_steps
    return reduce(np.asarray(factors.dynamic), data.get("length"))


def _missing(label: str, train_data: dict, test_data: dict) -> str | None:
    """Why this label cannot be probed, or None."""
    if label not in train_data or label not in test_data:
        return f"the data have no {label}"
    if len(np.unique(train_data[label])) < 2:
        return f"all training clips have the same {label}"
    return None


def _position_probes(
    train: Factors, test: Factors, train_data: dict, test_data: dict
) -> dict[str, float]:
    """R^2 of the place in each real step from d, and of all places from s."""
    on_train, on_test = (
        valid_steps(data["position"].shape, data.get("length")) for data in (train_data, test_data)
    )
    train_path, test_path = (
        flatten_steps(data["position"], data.get("length")) for data in (train_data, test_data)
    )
    return {
        "d_to_position_r2": regression_probe(
            np.asarray(train.dynamic)[on_train],
            train_data["position"][on_train],
            np.asarray(test.dynamic)[on_test],
            test_data["position"][on_test],
        ),
        "s_to_position_r2": regression_probe(
            np.asarray(train.static), train_path, np.asarray(test.static), test_path
        ),
    }
