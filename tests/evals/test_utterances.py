import numpy as np
import pytest
from oracles import DigitOracle

from diffsda_jax.evals.context import Context, EvalSettings
from diffsda_jax.evals.utterances import utterances
from diffsda_jax.factors import Factors

STEPS, SPEAKERS, CONTENTS = 4, 6, 10


def split(speakers, contents, seed, chunks=3):
    """Chunks of recordings in which all speakers say all contents; their order is the course."""
    rng = np.random.default_rng(seed)
    speaker, content = (values.ravel() for values in np.meshgrid(speakers, contents, indexing="ij"))
    order = rng.permutation(len(speaker))
    group = np.repeat(np.arange(len(order)), chunks)
    return {
        "x": np.zeros((len(group), STEPS, 1)),
        "length": np.full(len(group), STEPS),
        "group": group,
        "static_label": speaker[order][group],
        "dynamic_label": content[order][group],
    }


def oracle(data):
    """s tells the speaker and nothing else, d the content in every step and nothing else."""
    content = np.eye(CONTENTS)[data["dynamic_label"]]
    return Factors(
        static=np.eye(2 * SPEAKERS)[data["static_label"]],
        dynamic=np.repeat(content[:, None], STEPS, axis=1),
    )


def shuffled(data, seed):
    """The oracle's factors of other recordings."""
    own = np.random.default_rng(seed)
    order = own.permutation(data["group"].max() + 1)
    chunks = np.stack([np.flatnonzero(data["group"] == group) for group in order]).ravel()
    return oracle(data)[chunks]


def context(train, test, train_factors, test_factors):
    return Context(
        model=DigitOracle(),  # not asked
        kind="series",
        train=train,
        test=test,
        train_factors=train_factors,
        test_factors=test_factors,
        judge=None,
        settings=EvalSettings(),
        readers=train,
        trial=np.arange(len(test["x"])),
    )


@pytest.fixture(scope="module")
def splits():
    train = split(range(SPEAKERS), range(CONTENTS), seed=0)
    return train, split(range(SPEAKERS, 2 * SPEAKERS), range(CONTENTS), seed=1)


def test_oracle_factors_are_read_perfectly_and_the_others_by_chance(splits):
    metrics, notes = utterances(context(*splits, *map(oracle, splits)))
    assert notes == []
    assert metrics["s_to_speaker_percent"] == 100.0
    assert metrics["d_to_content_percent"] == 100.0
    for name, chance in (("d_mean_to_speaker", 100 / SPEAKERS), ("s_to_content", 100 / CONTENTS)):
        assert metrics[f"{name}_chance_percent"] == pytest.approx(chance)
        assert metrics[f"{name}_percent"] == pytest.approx(chance)
        assert metrics[f"{name}_over_chance_points"] == pytest.approx(0.0)


def test_shuffled_factors_are_at_chance(splits):
    factors = [shuffled(data, seed) for seed, data in enumerate(splits)]
    metrics, _ = utterances(context(*splits, *factors))
    over = {name: value for name, value in metrics.items() if name.endswith("over_chance_points")}
    assert len(over) == 4
    for name, value in over.items():
        assert abs(value) < 15.0, name


def test_exchanged_factors_are_read_from_the_other_one(splits):
    """Control: the probes look where they say."""
    factors = [
        Factors(
            static=whole.dynamic[:, 0],
            dynamic=np.repeat(whole.static[:, None], STEPS, axis=1),
        )
        for whole in map(oracle, splits)
    ]
    metrics, _ = utterances(context(*splits, *factors))
    assert metrics["d_mean_to_speaker_percent"] == metrics["s_to_content_percent"] == 100.0
    assert metrics["s_to_speaker_over_chance_points"] < 1.0


def test_recordings_stand_for_contents_without_a_label(splits):
    train, test = (
        {key: values for key, values in data.items() if key != "dynamic_label"} for data in splits
    )
    metrics, notes = utterances(context(train, test, *map(oracle, splits)))
    assert metrics["s_to_speaker_percent"] == 100.0 and "s_to_content_percent" not in metrics
    assert notes == ["content probes skipped: no sentence is said by several speakers"]


def test_padding_is_not_content(splits):
    factors = [oracle(data) for data in splits]
    data = [dict(part, length=np.full(len(part["x"]), 2)) for part in splits]
    for part in factors:
        part.dynamic[:, 2:] = 1e3 * np.random.default_rng(0).normal(size=part.dynamic[:, 2:].shape)
    metrics, _ = utterances(context(*data, *factors))
    assert metrics["d_to_content_percent"] == 100.0


def test_unlabelled_clips_are_passed_over(splits):
    train, test = splits
    for name in ("group", "static_label"):
        data = {key: values for key, values in test.items() if key != name}
        metrics, (note,) = utterances(context(train, data, oracle(train), oracle(test)))
        assert metrics == {} and note.startswith("utterances skipped")


@pytest.mark.parametrize(
    ("speakers", "contents", "reason"),
    [
        ((6,), range(CONTENTS), "training labels are 6; at least two classes"),
        ((6, 7, 8), (0,), "1 folds of 3 items"),
    ],
    ids=["one speaker", "one recording of each"],
)
def test_too_little_for_a_speaker_probe_is_a_note(splits, speakers, contents, reason):
    test = split(speakers, contents, seed=2)
    metrics, (note,) = utterances(context(splits[0], test, oracle(splits[0]), oracle(test)))
    assert note.startswith("speaker probes skipped") and reason in note
    assert metrics["d_to_content_percent"] == 100.0 and "s_to_speaker_percent" not in metrics


def test_speakers_of_one_recording_are_left_out_and_counted(splits):
    test = split((6, 7, 8), range(CONTENTS), seed=2)
    keep = (test["static_label"] != 8) | (test["dynamic_label"] == 0)
    test = {key: values[keep] for key, values in test.items()}
    metrics, notes = utterances(context(splits[0], test, oracle(splits[0]), oracle(test)))
    assert metrics["s_to_speaker_percent"] == 100.0
    assert notes == ["speaker probes: 1 recordings left out, their speaker says nothing else"]


def test_sentences_that_training_never_saw_are_left_out_and_counted(splits):
    test = splits[1]
    train = {key: values[splits[0]["dynamic_label"] < 7] for key, values in splits[0].items()}
    metrics, notes = utterances(context(train, test, oracle(train), oracle(test)))
    assert metrics["d_to_content_percent"] == 100.0
    assert notes == ["content probes: 18 recordings left out, their sentence is not in training"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [(lambda label: 0 * label, "say one sentence"), (lambda label: label + CONTENTS, "has no sen")],
)
def test_nothing_to_learn_content_from_is_a_note(splits, change, reason):
    train = splits[0] | {"dynamic_label": change(splits[0]["dynamic_label"])}
    metrics, (note,) = utterances(context(train, splits[1], *map(oracle, splits)))
    assert note.startswith("content probes skipped") and reason in note
    assert metrics["s_to_speaker_percent"] == 100.0 and "d_to_content_percent" not in metrics
