"""The same training on every split of the devices, and in micro-batches."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent / "train"))

from tiny_run import (
    BATCH,
    ROOT_KEY,
    Batches,
    TinyModel,
    assert_trees_equal,
    copy,
    initial_variables,
)

from diffsda_jax import config as configuration
from diffsda_jax import runs, sharding
from diffsda_jax.train.checkpoint import Checkpointer
from diffsda_jax.train.optimizer import make_optimizer, make_schedule
from diffsda_jax.train.state import create_state, variables_of
from diffsda_jax.train.step import make_draw_fn, make_loss_fn, make_train_step

SPLITS = [(1, 1), (8, 1), (2, 2), (1, 8)]
MORE_SPLITS = [(2, 1), (1, 2), (4, 1), (1, 4), (4, 2), (2, 4)]
ALL_SPLITS = SPLITS + [pytest.param(split, marks=pytest.mark.slow) for split in MORE_SPLITS]
SCHEDULE = make_schedule("constant", learning_rate=1e-2, total_steps=1000)
OPTIMIZER = make_optimizer(SCHEDULE)
EVERYTHING = (("", "largest"),)  # the arrays of a tiny model are below the size that is split


def start(split, rules=EVERYTHING, **options):
    """A mesh, a compiled step and a new state."""
    mesh = sharding.make_mesh(jax.devices()[: split[0] * split[1]], *split)
    loss = {"noise_draws": 2, "encoder_noise": 0.1, "train": options.pop("dropout", True)}
    step_fn = make_train_step(
        make_loss_fn(TinyModel(), **loss),
        OPTIMIZER,
        schedule=SCHEDULE,
        ema_half_life_examples=20.0,
        batch_size=BATCH,
        mesh=mesh,
        rules=rules,
        draw_fn=make_draw_fn(**loss),
        **options,
    )
    return mesh, step_fn, create_state(initial_variables(), OPTIMIZER, mesh, rules)


def train(split, num_steps=5, state=None, **options):
    """The metrics of some steps, and the state after them."""
    mesh, step_fn, new = start(split, **options)
    state, batches, found = new if state is None else state, Batches(), []
    for _ in range(num_steps):
        host = {name: value for name, value in next(batches).items() if name != "static_label"}
        batch = sharding.shard_batch(host, mesh)
        state, metrics = step_fn(state, batch, jax.random.key(ROOT_KEY))
        found.append([float(metrics[name]) for name in ("loss", "grad_norm", "param_norm")])
    return np.array(found), state


@pytest.fixture(scope="module")
def on_one():
    """What one device finds."""
    metrics, state = train((1, 1), rules=())
    return metrics, copy(state)


@pytest.mark.parametrize("split", ALL_SPLITS)
def test_every_split_of_the_devices_trains_alike(split, on_one):
    metrics, state = train(split)
    np.testing.assert_allclose(metrics, on_one[0], rtol=1e-5)
    if split == (1, 1):
        assert_trees_equal(copy(state.params), on_one[1].params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        copy(state.ema),
        on_one[1].ema,
    )


def test_state_moments_and_average_are_split_and_stay_so():
    _, state = train((2, 4), num_steps=2)
    _, _, new = start((2, 4))
    kernels = [state.params["hidden"]["kernel"], state.ema["hidden"]["kernel"]]
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.shape == kernels[0].shape]
    assert len(moments) == 2
    for kernel in (*kernels, *moments):
        assert kernel.addressable_data(0).size == kernel.size // 4
    before, after = (jax.tree.map(lambda x: x.sharding, tree) for tree in (new, state))
    assert before == after


def test_gradients_of_split_weights_are_split():
    """Nothing but the weights in use is whole: the step's memory falls with fsdp."""
    sizes = {}
    for split in ((4, 1), (1, 4)):
        mesh, step_fn, state = start(split)
        host = {name: value for name, value in next(Batches()).items() if name != "static_label"}
        traced = step_fn.trace(state, sharding.shard_batch(host, mesh), jax.random.key(0))
        sizes[split] = traced.lower().compile().memory_analysis().argument_size_in_bytes
    assert sizes[1, 4] < 0.5 * sizes[4, 1]


def test_a_split_state_is_evaluated_whole():
    _, state = train((1, 8), num_steps=1)
    variables = variables_of(state, "ema")
    assert_trees_equal(copy(variables["params"]), copy(state.ema))
    assert all(len(x.devices()) == 1 for x in jax.tree.leaves(variables))


@pytest.mark.parametrize("there", [(1, 1), (4, 2)])
def test_a_split_state_is_saved_and_goes_on_elsewhere(tmp_path, there, on_one):
    _, state = train((2, 4), num_steps=3)
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(3, state, {})
    _, _, template = start(there)
    restored, _ = checkpointer.restore_latest(template)
    checkpointer.close()
    assert_trees_equal(copy(restored), copy(state))
    assert jax.tree.map(lambda x: x.sharding, restored) == jax.tree.map(
        lambda x: x.sharding, template
    )


@pytest.mark.parametrize(("split", "parts"), [((1, 1), 2), ((1, 1), 8), ((2, 2), 2)])
def test_micro_batches_give_the_loss_of_the_whole(split, parts):
    whole, _ = train((1, 1), dropout=False, rules=())
    metrics, _ = train(split, dropout=False, accumulation_steps=parts)
    np.testing.assert_allclose(metrics, whole, rtol=1e-5)


def test_micro_batches_have_dropout_of_their_own():
    whole, _ = train((1, 1), num_steps=1)
    metrics, _ = train((1, 1), num_steps=1, accumulation_steps=2)
    assert metrics[0, 0] != whole[0, 0]
    again, _ = train((2, 1), num_steps=1, accumulation_steps=2)
    np.testing.assert_allclose(again, metrics, rtol=1e-5)


@pytest.mark.parametrize(("split", "parts"), [((1, 1), 3), ((4, 1), 4)])
def test_batches_that_micro_batches_do_not_divide_are_refused(split, parts):
    with pytest.raises(ValueError, match=f"batch_size is 8.*{parts} accumulation_steps"):
        start(split, accumulation_steps=parts)


@pytest.mark.slow
def test_a_config_splits_its_state(tmp_path):
    config = runs.shrink(configuration.load_config("configs/japanese_vowels.py"))
    config.mesh.update(data=2, fsdp=4, rules=EVERYTHING)
    config.train.update(batch_size=16, accumulation_steps=2)
    config.eval.parts = ("reconstruction",)
    result = runs.run_train(config, tmp_path)
    kernels = [x for x in jax.tree.leaves(result.state.params) if x.ndim == 2]
    assert any(x.addressable_data(0).size * 4 == x.size for x in kernels)
    assert (tmp_path / "eval" / "00000002" / "metrics.json").exists()
    config.mesh.update(data=-1, fsdp=1, rules=())  # other devices may go on
    config.train.update(num_steps=3)
    assert int(runs.run_train(config, tmp_path).state.step) == 3
