"""Disentanglement against known factors: DCI, what falls on which block, and true swaps.

These need the true factors, so they are for synthetic data and for sets that carry labels.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Num
from sklearn.ensemble import GradientBoostingClassifier, GradientBoostingRegressor
from sklearn.linear_model import Lasso
from sklearn.preprocessing import StandardScaler

from diffsda_jax.evals.choices import check_choice
from diffsda_jax.evals.interface import Clips, Lengths, mean_over_steps, valid_steps
from diffsda_jax.evals.metrics import normalized_mse
from diffsda_jax.evals.probes import chance_level
from diffsda_jax.factors import Factors

READERS = ("trees", "lasso")
_NUM_TREES = 50
_LASSO_PENALTY = 0.02  # on standardised codes and factors


@dataclass(frozen=True)
class TrueFactors:
    """The true factors of N sequences.

    Attributes:
      static: ``[N, K]``, numbers, or integers for classes.
      dynamic: ``[N, L]`` for the whole sequence, or ``[N, V, L]`` for each step.
      length: number of real steps ``[N]``; None means all V.
    """

    static: Num[np.ndarray, "N K"]
    dynamic: Num[np.ndarray, "N *steps L"]
    length: Lengths | None = None


def dci(
    codes: Float[np.ndarray, "N E"],
    factors: Num[np.ndarray, "N K"],
    test_codes: Float[np.ndarray, "M E"],
    test_factors: Num[np.ndarray, "M K"],
    *,
    is_class: Bool[np.ndarray, " K"] | None = None,
    reader: str = "trees",
    seed: int = 0,
) -> dict[str, float]:
    """Disentanglement, completeness and informativeness of latent codes.

    A reader of each factor says how much each code tells about it. Disentanglement: a code tells
    about one factor only (mean over codes, weighted by what they tell). Completeness: a factor is
    told by one code only (mean over factors). Informativeness: how well the readers do on the test
    items (mean over factors). All are 1 at best. A factor about which no code tells anything has
    completeness 0.

    Args:
      codes: latent codes of the training items.
      factors: true factors of the training items.
      test_codes: latent codes of the test items, of other sequences than the training items.
      test_factors: true factors of the test items.
      is_class: which factors are classes; None: all of them if they are integers, else none.
      reader: ``trees`` (gradient boosted) or ``lasso`` (linear; classes one-hot).
      seed: of the trees.

    Returns:
      ``disentanglement``, ``completeness``, ``informativeness``. The last is R^2, or for classes
      the accuracy rescaled so that `chance_level` is 0; not below 0.

    Raises:
      ValueError: an unknown reader, fewer than two codes or factors, or a factor that is constant.

    References:
      Eastwood and Williams, A Framework for the Quantitative Evaluation of Disentangled
      Representations, ICLR 2018; its informativeness is an error (0 best), here it is a score.
    """
    importance, scores = code_importance(
        codes,
        factors,
        test_codes,
        test_factors,
        is_class=is_class,
        reader=reader,
        seed=seed,
    )
    return dci_scores(importance, scores)


def block_dci(
    train: Factors,
    test: Factors,
    known_train: TrueFactors,
    known_test: TrueFactors,
    *,
    is_class_static: bool = False,
    is_class_dynamic: bool = False,
    reader: str = "trees",
    num_items: int = 2000,
    seed: int = 0,
) -> dict[str, float]:
    """`dci` of ``(s, d)`` to ``(static, dynamic)`` factors, and what falls on which block.

    Dynamic factors of each step are read from the codes of that step: the items are then
    ``num_items`` random real steps. Dynamic factors of the whole sequence are read from the mean of
    ``d`` over its real steps: the items are then sequences.

    Args:
      train: codes that the readers are fitted on.
      test: codes that they are scored on, of other sequences.
      known_train: true factors of the training sequences.
      known_test: true factors of the test sequences.
      is_class_static: the static factors are classes.
      is_class_dynamic: the dynamic factors are classes.
      reader: ``trees`` or ``lasso``.
      num_items: items taken of either split at most.
      seed: of the choice of items and of the trees.

    Returns:
      The scores of `dci`, and those of `block_shares`.

    Raises:
      ValueError: as for `dci`.
    """
    (codes, factors), (test_codes, test_factors) = (
        _items(side, known, num_items, seed)
        for side, known in ((train, known_train), (test, known_test))
    )
    num_static, num_dynamic = (
        known.shape[-1] for known in (known_train.static, known_train.dynamic)
    )
    is_class = np.repeat([is_class_static, is_class_dynamic], [num_static, num_dynamic])
    importance, scores = code_importance(
        codes, factors, test_codes, test_factors, is_class=is_class, reader=reader, seed=seed
    )
    return dci_scores(importance, scores) | block_shares(
        importance, train.static.shape[1], num_static
    )


def block_shares(
    importance: Float[np.ndarray, "E K"], num_static_codes: int, num_static_factors: int
) -> dict[str, float]:
    """How much of what is told about the factors is told by the block that should tell it.

    Args:
      importance: of each code for each factor, not negative; static ones first on both axes.
      num_static_codes: codes that belong to ``s``.
      num_static_factors: factors that are static.

    Returns:
      ``static_on_s_percent`` and ``dynamic_on_d_percent``, means over the factors of the share of
      importance on the right block (0 for a factor about which no code tells anything), and the
      share of codes in that block: what codes that mix both get.
    """
    total = importance.sum(0)
    on_static = importance[:num_static_codes].sum(0) / np.where(total > 0, total, 1.0)
    on_dynamic = np.where(total > 0, 1.0 - on_static, 0.0)
    chance = 100.0 * num_static_codes / len(importance)
    return {
        "static_on_s_percent": 100.0 * float(on_static[:num_static_factors].mean()),
        "static_on_s_chance_percent": chance,
        "dynamic_on_d_percent": 100.0 * float(on_dynamic[num_static_factors:].mean()),
        "dynamic_on_d_chance_percent": 100.0 - chance,
    }


def code_importance(
    codes: Float[np.ndarray, "N E"],
    factors: Num[np.ndarray, "N K"],
    test_codes: Float[np.ndarray, "M E"],
    test_factors: Num[np.ndarray, "M K"],
    *,
    is_class: Bool[np.ndarray, " K"] | None = None,
    reader: str = "trees",
    seed: int = 0,
) -> tuple[Float[np.ndarray, "E K"], Float[np.ndarray, " K"]]:
    """What each code tells about each factor, and how well the factor can be read.

    Args:
      codes: as for `dci`, and so are all other arguments.
      factors: see there.
      test_codes: see there.
      test_factors: see there.
      is_class: see there.
      reader: see there.
      seed: see there.

    Returns:
      Importance: of the trees (sums to 1 for a factor, or is 0), or absolute weights of the lasso
      on standardised codes; and the test score of each factor, from 0 to 1.

    Raises:
      ValueError: see there.
    """
    check_choice("reader", reader, READERS)
    num_codes, num_factors = codes.shape[1], factors.shape[1]
    if num_codes < 2 or num_factors < 2:
        raise ValueError(
            f"dci: {num_codes} codes and {num_factors} factors; allowed are 2 or more of each; "
            f"without a second one nothing can be mixed up, so leave it out."
        )
    constant = np.flatnonzero(
        (factors == factors[:1]).all(0) | (test_factors == test_factors[:1]).all(0)
    )
    if len(constant):
        raise ValueError(
            f"dci: factors {constant.tolist()} of {num_factors} are constant in a split; allowed "
            f"are factors that vary; leave these out."
        )
    if is_class is None:
        is_class = np.full(num_factors, np.issubdtype(factors.dtype, np.integer))
    scaler = StandardScaler().fit(codes)
    codes, test_codes = scaler.transform(codes), scaler.transform(test_codes)
    read = _read_by_trees if reader == "trees" else _read_by_lasso
    importance, scores = np.zeros((num_codes, num_factors)), np.zeros(num_factors)
    for place in range(num_factors):
        known, truth = factors[:, place], test_factors[:, place]
        weights, guess = read(codes, known, test_codes, bool(is_class[place]), seed)
        importance[:, place] = weights
        scores[place] = score_guess(known, truth, guess, bool(is_class[place]))
    return importance, scores


def true_swap_error(
    x_swap: Clips,
    x_true: Clips,
    x_static_donor: Clips,
    x_dynamic_donor: Clips,
    mask: Bool[np.ndarray, "B V *maskdims"] | None = None,
) -> dict[str, float]:
    """Error of swaps against the true swaps, which synthetic data know.

    Args:
      x_swap: decoded from ``s`` of one clip and ``d`` of another.
      x_true: what a perfect model would give, made from the true factors.
      x_static_donor: the clips that gave ``s``.
      x_dynamic_donor: the clips that gave ``d``.
      mask: True = observed, as in `masked_mse`.

    Returns:
      ``swap_nmse``, and as controls ``static_donor_nmse`` and ``dynamic_donor_nmse``, what a model
      gets that gives a donor back; ``swap_nmse_chance`` is that of the mean element, 1.
    """
    compared = {"swap": x_swap, "static_donor": x_static_donor, "dynamic_donor": x_dynamic_donor}
    errors = {f"{name}_nmse": normalized_mse(x_true, x, mask) for name, x in compared.items()}
    return errors | {"swap_nmse_chance": 1.0}


def score_guess(
    known: Num[np.ndarray, " N"],
    truth: Num[np.ndarray, " M"],
    guess: Num[np.ndarray, " M"],
    is_class: bool,
) -> float:
    """How good the guesses of one factor are, from chance (0) to perfect (1), not below 0.

    Args:
      known: the factor of the training items.
      truth: of the test items.
      guess: what was guessed of those.
      is_class: accuracy if so, with `chance_level` as 0; else R^2.
    """
    if is_class:
        ids = np.unique(np.concatenate([known, truth]), return_inverse=True)[1]
        chance = chance_level(ids[: len(known)], ids[len(known) :]) / 100.0
        error, error_of_chance = np.mean(guess != truth), 1.0 - chance
    else:
        error, error_of_chance = np.mean((guess - truth) ** 2), np.var(truth)
    return float(np.clip(1.0 - error / error_of_chance, 0.0, 1.0)) if error_of_chance else 0.0


def dci_scores(
    importance: Float[np.ndarray, "E K"], scores: Float[np.ndarray, " K"]
) -> dict[str, float]:
    """The three scores of `dci` from what each code tells about each factor."""
    by_code = importance.sum(1)
    weight = by_code / max(by_code.sum(), np.finfo(float).tiny)
    return {
        "disentanglement": float((weight * _concentration(importance)).sum()),
        "completeness": float(_concentration(importance.T).mean()),
        "informativeness": float(scores.mean()),
    }


def _concentration(importance: Float[np.ndarray, "R C"]) -> Float[np.ndarray, " R"]:
    """1 minus the entropy of each row, base the number of columns; 0 for a row of zeros."""
    total = importance.sum(1, keepdims=True)
    share = importance / np.where(total > 0, total, 1.0)
    entropy = -(share * np.log(np.where(share > 0, share, 1.0))).sum(1)
    return np.where(total[:, 0] > 0, 1.0 - entropy / np.log(importance.shape[1]), 0.0)


def _read_by_trees(
    codes: np.ndarray, known: np.ndarray, test_codes: np.ndarray, is_class: bool, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Importance of each code and the test guesses of gradient boosted trees."""
    kind = GradientBoostingClassifier if is_class else GradientBoostingRegressor
    trees = kind(n_estimators=_NUM_TREES, random_state=seed).fit(codes, known)
    return trees.feature_importances_, trees.predict(test_codes)


def _read_by_lasso(
    codes: np.ndarray, known: np.ndarray, test_codes: np.ndarray, is_class: bool, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Absolute weights and the test guesses of a lasso on standardised targets."""
    classes = np.unique(known)
    target = (known[:, None] == classes[None, :]).astype(float) if is_class else known[:, None]
    scaler = StandardScaler().fit(target)
    lasso = Lasso(alpha=_LASSO_PENALTY, random_state=seed).fit(codes, scaler.transform(target))
    guess = scaler.inverse_transform(lasso.predict(test_codes).reshape(len(test_codes), -1))
    weights = np.abs(np.atleast_2d(lasso.coef_)).sum(0)
    return weights, classes[guess.argmax(1)] if is_class else guess[:, 0]


def _items(
    side: Factors, known: TrueFactors, num_items: int, seed: int
) -> tuple[Float[np.ndarray, "P E"], Num[np.ndarray, "P K"]]:
    """Codes and true factors of random sequences, or of random real steps."""
    static, dynamic = np.asarray(side.static), np.asarray(side.dynamic)
    if known.dynamic.ndim == 2:
        sequence = np.arange(len(static))
        dynamic, dynamic_factor = mean_over_steps(dynamic, known.length), known.dynamic
    else:
        sequence, step = np.nonzero(valid_steps(dynamic.shape, known.length))
        dynamic, dynamic_factor = dynamic[sequence, step], known.dynamic[sequence, step]
    chosen = np.random.default_rng(seed).permutation(len(sequence))[:num_items]
    codes = np.concatenate([static[sequence[chosen]], dynamic[chosen]], axis=1)
    factors = np.concatenate([known.static[sequence[chosen]], dynamic_factor[chosen]], axis=1)
    return codes, factors
