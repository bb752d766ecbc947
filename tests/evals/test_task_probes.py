import jax
import numpy as np
import pytest
from jax import numpy as jnp

from diffsda_jax.evals.probe_training import ProbeNet, ProbeSpec, fit_and_read
from diffsda_jax.evals.task_probes import block_features, task_probe
from diffsda_jax.factors import Factors
from diffsda_jax.rngs import stream

QUICK = {"num_steps": 300, "learning_rate": 1e-2, "batch_size": 32, "seeds": (0, 1, 2)}


def make_factors(num_items, seed, steps=12):
    rng = np.random.default_rng(seed)
    return Factors(
        static=rng.standard_normal((num_items, 5)).astype(np.float32),
        dynamic=rng.standard_normal((num_items, steps, 2)).astype(np.float32),
    )


@pytest.fixture(scope="module")
def factors():
    return make_factors(500, 0), make_factors(300, 1)


def quadrant(side):
    """Four classes in s that no linear reader tells from each other."""
    return (side.static[:, 0] * side.static[:, 1] > 0) + 2 * (side.static[:, 2] > 0)


def test_classes_are_read_from_s(factors):
    train, test = factors
    # Scales and offsets of the features do not matter.
    train, test = (Factors(static=100 * f.static + 7, dynamic=f.dynamic) for f in factors)
    labels = [10 * quadrant(f) for f in factors]
    result = task_probe(ProbeSpec("classes", **QUICK), train, test, *labels)
    assert result.metrics["accuracy_percent"][0] > 85.0
    assert 25.0 <= result.metrics["accuracy_chance_percent"][0] < 35.0
    assert len(result.per_seed["accuracy_percent"]) == 3
    mean, spread = result.metrics["accuracy_percent"]
    assert mean == pytest.approx(np.mean(result.per_seed["accuracy_percent"]))
    assert spread == pytest.approx(np.std(result.per_seed["accuracy_percent"], ddof=1))
    shuffled = [np.random.default_rng(0).permutation(label) for label in labels]
    result = task_probe(ProbeSpec("classes", **QUICK), train, test, *shuffled)
    chance = result.metrics["accuracy_chance_percent"][0]
    assert abs(result.metrics["accuracy_percent"][0] - chance) < 10.0


def test_unbalanced_and_unseen_classes(factors):
    train, test = factors
    rare = [(np.arange(size) % every == 0).astype(int) for size, every in ((500, 10), (300, 5))]
    result = task_probe(ProbeSpec("classes", **QUICK), train, test, *rare)
    assert result.metrics["accuracy_chance_percent"] == (pytest.approx(80.0), 0.0)
    labels = [1 + (f.static[:, 0] > 0) for f in factors]  # two classes again: compiled once
    seen = task_probe(ProbeSpec("classes", **QUICK), train, test, *labels)
    unseen = task_probe(
        ProbeSpec("classes", **QUICK), train, test, labels[0], np.where(labels[1] == 1, 9, 2)
    )
    assert seen.metrics["accuracy_percent"][0] > 90.0
    assert unseen.metrics["accuracy_percent"][0] < 60.0


def temperature(side, scale=1.0):
    """Three blocks of four steps: mean of d and something of s, in degrees."""
    blocks = side.dynamic[:, :12, 0].reshape(-1, 3, 4).mean(2)
    return scale * (3 * blocks + side.static[:, :1]) + 20.0


def test_regression_is_in_the_units_of_the_data(factors):
    train, test = factors
    maes = []
    for scale in (1.0, 100.0):
        targets = [temperature(f, scale) for f in factors]
        result = task_probe(ProbeSpec("regression", **QUICK), train, test, *targets)
        chance = result.metrics["mae_chance"][0]
        expected = np.abs(targets[1] - targets[0].mean()).mean()
        assert chance == pytest.approx(expected, rel=1e-5)
        assert result.metrics["mae"][0] < 0.25 * chance
        maes.append(result.metrics["mae"][0])
    assert maes[1] == pytest.approx(100 * maes[0], rel=1e-2)
    shuffled = [np.random.default_rng(0).permutation(target) for target in targets]
    result = task_probe(ProbeSpec("regression", **QUICK), train, test, *shuffled)
    assert result.metrics["mae"][0] > 0.9 * result.metrics["mae_chance"][0]


def test_blocks_leave_out_what_does_not_fit_and_padding(factors):
    side = make_factors(4, 0, steps=14)
    length = np.array([14, 6, 3, 0])
    features, real = block_features(side, 3, length)
    assert features.shape == (4, 3, 7)
    np.testing.assert_array_equal(real, [[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0]])
    np.testing.assert_allclose(features[0, 1, :2], side.dynamic[0, 4:8].mean(0), rtol=1e-6)
    np.testing.assert_allclose(features[1, 1, :2], side.dynamic[1, 4:6].mean(0), rtol=1e-6)
    np.testing.assert_array_equal(features[0, :, 2:], np.tile(side.static[0], (3, 1)))
    with pytest.raises(ValueError, match="15 blocks of 14 steps"):
        block_features(side, 15)


def risk(side, length):
    """High where the last real steps of d agree with s."""
    last = side.dynamic[np.arange(len(length)), length - 1, 0]
    score = 2 * last + side.static[:, 0]
    return (score > np.quantile(score, 0.8)).astype(np.int32)


def test_mortality_is_read_from_the_course_and_not_from_padding(factors):
    rng = np.random.default_rng(0)
    lengths = [rng.integers(6, 13, len(f)) for f in factors]
    targets = [risk(f, length) for f, length in zip(factors, lengths, strict=True)]
    names = {"train_length": lengths[0], "test_length": lengths[1]}
    spec = ProbeSpec("binary", **{**QUICK, "num_steps": 200, "seeds": (0,)})
    result = task_probe(spec, *factors, *targets, **names)
    assert result.metrics["auroc_percent"][0] > 85.0
    assert result.metrics["auprc_percent"][0] > 60.0
    assert np.isnan(result.metrics["auprc_percent"][1])
    assert result.metrics["auprc_chance_percent"][0] == pytest.approx(20.0, abs=0.5)
    assert result.metrics["auroc_chance_percent"] == (50.0, 0.0)
    polluted = []
    for side, length in zip(factors, lengths, strict=True):
        dynamic = np.where(np.arange(12)[None, :, None] < length[:, None, None], side.dynamic, 1e6)
        polluted.append(Factors(static=side.static, dynamic=dynamic.astype(np.float32)))
    again = task_probe(spec, *polluted, *targets, **names)
    assert again.per_seed == result.per_seed
    shuffled = [rng.permutation(target) for target in targets]
    result = task_probe(spec, *factors, *shuffled, **names)
    assert abs(result.metrics["auroc_percent"][0] - 50.0) < 12.0


def test_reference_goes_on_from_the_last_repeat(factors):
    train, test = factors
    labels = [quadrant(f) for f in factors]
    short = {**QUICK, "num_steps": 20, "learning_rate": 3e-3}
    fresh, reused = (
        task_probe(ProbeSpec("classes", **short), train, test, *labels, form=form)
        for form in ("corrected", "reference")
    )
    accuracy, again = fresh.per_seed["accuracy_percent"], reused.per_seed["accuracy_percent"]
    assert again[0] == pytest.approx(accuracy[0], abs=0.5)
    assert again[2] > again[0] + 5.0 and again[2] > accuracy[2] + 5.0


def plain_loop(net, x, goal, key):
    """Twin of the training: AdamW with a cosine, written out; outputs after five steps."""
    params = jax.jit(net.init)(stream(key, "params"), x[:1], None)
    mean = square = jax.tree.map(np.zeros_like, params)

    @jax.jit
    def gradient_of(params, index):
        def loss(params):
            logits = jax.nn.log_softmax(net.apply(params, x[index], None))
            return -logits[jnp.arange(8), goal[index]].mean()

        return jax.grad(loss)(params)

    for number, index in enumerate(jax.random.randint(stream(key, "batch"), (5, 8), 0, len(x))):
        gradient = jax.tree.map(np.asarray, gradient_of(params, index))
        mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mean, gradient)
        square = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, square, gradient)
        rate = np.float32(1e-3 * 0.5 * (1 + np.cos(np.pi * number / 5)))
        first, second = 1 - 0.9 ** (number + 1), 1 - 0.999 ** (number + 1)

        def move(p, m, v, rate=rate, first=first, second=second):
            p = np.asarray(p)
            return p - rate * (m / first / (np.sqrt(v / second) + 1e-8) + 0.1 * p)

        params = jax.tree.map(move, params, mean, square)
    return net.apply(params, x, None)


def test_training_of_all_seeds_agrees_with_a_plain_loop():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((40, 3)), jnp.float32)
    goal = jnp.asarray(rng.integers(2, size=40))
    spec = ProbeSpec("classes", hidden=(4,), num_steps=5, batch_size=8, weight_decay=0.1)
    seeds = jnp.asarray([7, 8], jnp.uint32)
    outputs = fit_and_read(spec, False, 2, (x, None), goal, (x, None), seeds)
    assert outputs.shape == (2, 40, 2)
    for output, seed in zip(outputs, (7, 8), strict=True):
        twin = plain_loop(ProbeNet((4,), 2), x, goal, jax.random.key(seed))
        np.testing.assert_allclose(output, twin, atol=1e-5)


def test_a_probe_without_hidden_layers_is_linear(factors):
    train, test = factors
    quick = {**QUICK, "seeds": (0,)}
    spec = ProbeSpec("classes", hidden=(), **quick)
    assert spec.widths == () and ProbeSpec("classes").widths == (64,)
    line, corners = (
        [(value(f.static) > 0).astype(int) for f in factors]
        for value in (lambda s: s[:, 0] + s[:, 1], lambda s: s[:, 0] * s[:, 1])
    )
    for labels, low, high in ((line, 95.0, 100.0), (corners, 35.0, 65.0)):
        found = task_probe(spec, train, test, *labels).metrics["accuracy_percent"][0]
        assert low < found <= high


def test_what_is_refused(factors):
    train, test = factors
    with pytest.raises(ValueError, match="kind: unknown value 'ranking'"):
        ProbeSpec("ranking")
    with pytest.raises(ValueError, match="two widths"):
        ProbeSpec("binary", hidden=(32,))
    with pytest.raises(ValueError, match=r"hidden: \(\) for a binary probe"):
        ProbeSpec("binary", hidden=())
    with pytest.raises(ValueError, match="num_steps: 0"):
        ProbeSpec("classes", num_steps=0)
    with pytest.raises(ValueError, match="seeds"):
        ProbeSpec("classes", seeds=())
    zeros, few = np.zeros(500, int), np.zeros(300, int)
    for kind, target, test_target, message in (
        ("classes", zeros, few, r"holds \[0\] only"),
        ("binary", zeros, few, "0 and 1, both"),
        ("regression", zeros, few, r"has shape \(500,\)"),
        ("classes", few, few, r"has shape \(300,\); allowed: 500"),
        ("regression", np.full((500, 3), np.nan), np.ones((300, 3)), "1500 values that are not"),
    ):
        with pytest.raises(ValueError, match=message):
            task_probe(ProbeSpec(kind), train, test, target, test_target)
    with pytest.raises(ValueError, match="form: unknown value 'paper'"):
        task_probe(ProbeSpec("classes"), train, test, zeros, few, form="paper")
