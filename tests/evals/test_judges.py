import jax
import numpy as np
import pytest
from jax import numpy as jnp
from oracles import digit_arrays

from diffsda_jax.data.sources.japanese_vowels import JapaneseVowels
from diffsda_jax.evals.judges import PatchConv, train_judge


def vowels(split):
    """Utterances padded to 29 steps, z-scored by fixed numbers."""
    source = JapaneseVowels(split)
    rng = np.random.default_rng(0)
    clips = [source.load(index, rng) for index in range(len(source))]
    length = np.array([len(clip["x"]) for clip in clips], np.int32)
    x = np.stack([np.pad(clip["x"], ((0, 29 - len(clip["x"])), (0, 0))) for clip in clips])
    label = np.array([clip["static_label"] for clip in clips])
    return {"x": 2 * x, "length": length, "static_label": label}


@pytest.fixture(scope="module")
def speaker_judge():
    train = vowels("train")
    return train_judge(**train, num_steps=200, width=16)


def test_speaker_judge_knows_the_speakers(speaker_judge):
    test = vowels("test")
    assert speaker_judge.accuracy(test)["static_accuracy_percent"] > 90.0
    # Control: labels of other clips are met at chance.
    shuffled = {**test, "static_label": np.random.default_rng(0).permutation(test["static_label"])}
    assert speaker_judge.accuracy(shuffled)["static_accuracy_percent"] < 25.0


def test_padding_and_unobserved_values_are_not_seen(speaker_judge):
    test = {name: values[:40] for name, values in vowels("test").items()}
    judged = speaker_judge.predict(test["x"], test["length"])
    polluted = test["x"].copy()
    polluted[np.arange(29)[None] >= test["length"][:, None]] = 100.0
    again = speaker_judge.predict(polluted, test["length"])
    np.testing.assert_array_equal(judged["static"], again["static"])
    assert (speaker_judge.predict(polluted)["static"] != judged["static"]).any()
    mask = np.ones(test["x"].shape, bool)
    mask[:, :5] = False
    polluted = np.where(mask, test["x"], 100.0).astype(np.float32)
    np.testing.assert_array_equal(
        speaker_judge.predict(polluted, test["length"], mask)["static"],
        speaker_judge.predict(np.where(mask, test["x"], 0), test["length"])["static"],
    )


def test_what_a_judge_sees_is_sure_of_clips_and_their_features_tell_speakers(speaker_judge):
    test = vowels("test")
    seen = speaker_judge.see(test["x"], test["length"])
    probabilities = seen.probabilities["static"]
    np.testing.assert_allclose(probabilities.sum(1), 1.0, rtol=1e-5)
    label = np.argmax(probabilities, 1)
    judged = speaker_judge.predict(test["x"], test["length"])["static"]
    np.testing.assert_array_equal(label, judged)
    # The head makes the probabilities of the features, and of nothing else.
    head = speaker_judge.params["params"]["static"]
    logits = seen.features @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    np.testing.assert_allclose(jax.nn.softmax(logits), probabilities, atol=1e-5)
    few = seen[[3, 1]]
    np.testing.assert_array_equal(few.features, seen.features[[3, 1]])
    np.testing.assert_array_equal(few.probabilities["static"], probabilities[[3, 1]])


def test_a_judge_learns_what_only_the_order_of_far_steps_tells():
    def clips(count, seed):
        rng = np.random.default_rng(seed)
        label = rng.integers(0, 2, count)
        x = 0.1 * rng.standard_normal((count, 40, 2)).astype(np.float32)
        early, late = rng.integers(0, 12, count), rng.integers(28, 40, count)
        x[np.arange(count), early, label] += 1
        x[np.arange(count), late, 1 - label] += 1
        return {"x": x, "dynamic_label": label}

    judge = train_judge(**clips(256, 0), num_steps=300, width=16)
    assert judge.accuracy(clips(200, 1))["dynamic_accuracy_percent"] > 90.0


def test_the_seed_decides_the_judge():
    train = {name: values[:40] for name, values in vowels("train").items()}
    first, again, other = (
        jax.tree.leaves(train_judge(**train, num_steps=3, width=4, seed=seed).params)
        for seed in (1, 1, 2)
    )
    for left, right in zip(first, again, strict=True):
        np.testing.assert_array_equal(left, right)
    assert any((left != right).any() for left, right in zip(first, other, strict=True))


def test_digit_judge_learns_both_labels():
    train, test = digit_arrays("train", 1000), digit_arrays("test", 200)
    labels = {name: train[name] for name in ("static_label", "dynamic_label")}
    settings = {"num_steps": 150, "batch_size": 32, "width": 16, **labels}
    accuracy = train_judge(train["x"], **settings).accuracy(test)
    assert accuracy["dynamic_accuracy_percent"] > 80.0
    assert accuracy["static_accuracy_percent"] > 40.0


@pytest.mark.slow
def test_digit_judge_is_nearly_perfect_on_new_scans():
    train, test = digit_arrays("train", 6000), digit_arrays("test", 1000)
    labels = {name: train[name] for name in ("static_label", "dynamic_label")}
    accuracy = train_judge(train["x"], num_steps=600, **labels).accuracy(test)
    assert accuracy["dynamic_accuracy_percent"] > 99.0
    assert accuracy["static_accuracy_percent"] > 94.0


@pytest.mark.parametrize(("stride", "dilation"), [(2, 1), (1, 3)])
def test_patch_convolution_is_a_convolution(stride, dilation):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 8, 8, 3)), jnp.float32)
    layer = PatchConv(features=4, kernel=3, stride=stride, dilation=dilation)
    params = layer.init(jax.random.key(0), x)
    kernel = params["params"]["Dense_0"]["kernel"].reshape(3, 3, 3, 4)
    expected = jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(dilation, dilation)] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    np.testing.assert_allclose(layer.apply(params, x), expected, atol=1e-5)


def test_a_judge_needs_a_label():
    with pytest.raises(ValueError, match="both None"):
        train_judge(np.zeros((4, 3, 2), np.float32))
