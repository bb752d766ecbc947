import jax
import numpy as np
import pytest

from diffsda_jax import config as configuration
from diffsda_jax import experiment as experiments
from diffsda_jax import runs, sharding
from diffsda_jax.train.step import BATCH_KEYS


@pytest.fixture(scope="module")
def experiment():
    config = runs.shrink(configuration.load_config("configs/japanese_vowels.py"))
    config.model.dropout = 0.1
    return experiments.build(config)


def test_eight_devices_give_the_loss_and_gradient_of_one(experiment):
    results = []
    for devices in (jax.devices(), jax.devices()[:1]):
        mesh = sharding.make_mesh(devices)
        transformation, _, loss_fn = experiments.make_training(experiment, mesh)
        state = experiments.initial_state(experiment, transformation, mesh)
        batch = next(experiments.make_iterator(experiment, seed=0))
        batch = sharding.shard_batch({k: batch[k] for k in BATCH_KEYS}, mesh)
        gradient = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
        (loss, _), grads = gradient(state.params, state.constants, batch, jax.random.key(0))
        results.append((float(loss), jax.device_get(grads)))
    (loss_eight, eight), (loss_one, one) = results
    assert loss_eight == pytest.approx(loss_one, rel=1e-5)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(one))
    for a, b in zip(jax.tree.leaves(eight), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * scale)


def test_meta_is_enough_to_restore_the_model(experiment):
    meta = experiment.meta()
    assert experiments.ModelSpec.from_dict(meta["model"]) == experiment.spec
    assert meta["source"]["static_names"][0] == "speaker 1"
    normalizer = experiments.Normalizer.from_dict(meta["normalizer"])
    np.testing.assert_array_equal(normalizer.std, experiment.normalizer.std)


def test_a_batch_that_devices_cannot_share_is_refused(experiment):
    config = experiment.config.copy_and_resolve_references()
    config.train.batch_size = 12
    with pytest.raises(ValueError, match="batch_size is 12.*8 devices"):
        experiments.make_training(experiments.build(config), sharding.make_mesh())


def test_options_below_the_config_are_checked_by_those_who_use_them():
    config = configuration.load_config("configs/video_folder.py")
    with pytest.raises(ValueError, match="'video_folder' needs the option 'root'"):
        experiments.build(config)
    config.source.options.root = "/nowhere/at/all"
    with pytest.raises(FileNotFoundError, match="/nowhere/at/all"):
        experiments.build(config)
