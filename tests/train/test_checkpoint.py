"""Saving, restoring, damage and what is refused."""

import json
import logging
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from tiny_run import assert_trees_equal, copy

from diffsda_jax import sharding
from diffsda_jax.train import integrity
from diffsda_jax.train.checkpoint import Checkpointer, load_for_inference, save_converted
from diffsda_jax.train.integrity import IncompatibleCheckpointError, check_compatible
from diffsda_jax.train.optimizer import make_optimizer, make_schedule
from diffsda_jax.train.state import create_state

OPTIMIZER = make_optimizer(make_schedule("constant", learning_rate=1.0, total_steps=9))
META = {"config": {"a": [1, 2.5, None, "x"]}, "data_state": {"next_index": 3}}


def make_state(value=0.0, width=3, constants=True, devices=8):
    """A state whose params, average and moments can be told apart."""
    variables = {"params": {"dense": {"kernel": jnp.full((4, width), value), "bias": jnp.ones(2)}}}
    if constants:
        variables["constants"] = {"frequencies": jnp.arange(5.0) + value}
    mesh = sharding.make_mesh(jax.devices()[:devices])
    state = create_state(variables, OPTIMIZER, mesh)
    return state.replace(
        step=state.step + int(value),
        ema=jax.tree.map(lambda leaf: leaf + 0.5, state.ema),
        opt_state=jax.tree.map(lambda leaf: leaf + int(value), state.opt_state),
    )


@pytest.fixture
def folder(tmp_path):
    """A workdir with steps 1, 2 and 3."""
    save_steps(tmp_path / "checkpoints", 1, 2, 3)
    return tmp_path / "checkpoints"


def save_steps(directory, *steps, **options):
    checkpointer = Checkpointer(directory)
    for step in steps:
        assert checkpointer.save(step, make_state(float(step), **options), META)
    checkpointer.close()


def restore(directory, template=None):
    checkpointer = Checkpointer(directory)
    try:
        return checkpointer.restore_latest(template or make_state())
    finally:
        checkpointer.close()


def array_file(step_folder, item="params"):
    """The largest file of an item: the arrays."""
    return max((step_folder / item / "d").iterdir(), key=lambda path: path.stat().st_size)


def test_round_trip_keeps_bits_structure_and_sharding(folder):
    state, meta = restore(folder)
    wanted = make_state(3.0)
    assert_trees_equal(copy(state), copy(wanted))
    assert jax.tree.structure(state) == jax.tree.structure(wanted)
    assert state.params["dense"]["kernel"].sharding == wanted.params["dense"]["kernel"].sharding
    assert state.step.sharding == wanted.step.sharding and state.step.dtype == jnp.int32
    assert {name: meta[name] for name in META} == META and meta["step"] == 3
    assert meta["versions"]["jax"] == jax.__version__


def test_nothing_saved_is_none(tmp_path):
    assert restore(tmp_path / "new") is None


def test_only_the_newest_are_kept_with_their_checksums(tmp_path):
    checkpointer = Checkpointer(tmp_path, keep=2)
    for step in (1, 2, 3):
        checkpointer.save(step, make_state(step), META)
    assert checkpointer.latest_step() == 3
    assert not checkpointer.save(3, make_state(9.0), META)  # there already
    checkpointer.close()
    numbered = {path.name for path in tmp_path.iterdir() if path.name.isdecimal()}
    assert numbered == {"2", "3"}
    assert {path.name for path in (tmp_path / "checksums").iterdir()} == {"2.json", "3.json"}
    digests = json.loads((tmp_path / "checksums" / "3.json").read_text())
    files = [path for path in (tmp_path / "3").rglob("*") if path.is_file()]
    assert digests.keys() == {str(path.relative_to(tmp_path / "3")) for path in files}


def test_state_may_be_given_away_right_after_saving(tmp_path):
    """An asynchronous save must not see what later steps write into the reused memory."""
    state = make_state(1.0)
    state = state.replace(params=state.params | {"big": jnp.ones((512, 512))})
    saved = copy(state)
    step_fn = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, state, META)
    later = state
    for _ in range(20):
        later = step_fn(later)
    checkpointer.close()
    restored, _ = restore(tmp_path, jax.tree.map(jnp.asarray, saved))
    assert_trees_equal(copy(restored), saved)


def damage_truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def damage_flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))


def damage_remove(path):
    path.unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_truncate, "bytes instead of"),
        (damage_flip, "has changed since it was written"),
        (damage_remove, "is missing"),
    ],
)
def test_damaged_step_is_named_set_aside_and_the_one_before_used(folder, caplog, damage, words):
    file = array_file(folder / "3")
    damage(file)
    with caplog.at_level(logging.WARNING, "diffsda_jax"):
        state, meta = restore(folder)
    assert meta["step"] == 2
    assert_trees_equal(copy(state), copy(make_state(2.0)))
    (warning,) = [record.getMessage() for record in caplog.records if record.name != "absl"]
    assert words in warning and "step 3" in warning and f"params/d/{file.name}" in warning
    assert "using step 2" in warning and "\n" not in warning
    assert (folder / "3.broken").is_dir()
    save_steps(folder, 3)
    assert restore(folder)[1]["step"] == 3


@pytest.mark.parametrize("record", ["[]", '{"a": 1}', '{"a": {"size": 1}}', "{", '{"a": null}'])
def test_a_damaged_record_of_checksums_is_damage(folder, caplog, record):
    (folder / "checksums" / "3.json").write_text(record)
    assert restore(folder)[1]["step"] == 2
    assert "step 3: checksums/3.json is" in caplog.text


def test_a_checkpoint_without_room_is_refused_before_it_is_begun(folder, monkeypatch):
    usage = shutil.disk_usage(folder)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match="No space left on device: a checkpoint needs 4.2 MB"):
        save_steps(folder, 4)
    monkeypatch.undo()
    assert restore(folder)[1]["step"] == 3


def test_a_clock_set_forward_while_saving_is_told_as_that(folder, monkeypatch):
    checkpointer = Checkpointer(folder)

    def late():
        raise TimeoutError("timed out after 86400 seconds")

    with monkeypatch.context() as patch:
        patch.setattr(checkpointer._manager, "wait_until_finished", late)
        with pytest.raises(TimeoutError, match="clock was set forward .*the same command again"):
            checkpointer.wait()
    checkpointer.close()


def test_empty_step_directory_is_passed_over(folder, caplog):
    (folder / "40").mkdir()
    assert restore(folder)[1]["step"] == 3
    assert "step 40: the directory is empty; using step 3" in caplog.text


def test_step_without_checksums_is_taken_if_it_restores(folder, caplog):
    (folder / "checksums" / "3.json").unlink()
    with caplog.at_level(logging.INFO, "diffsda_jax"):
        assert restore(folder)[1]["step"] == 3
    assert "step 3 in" in caplog.text and "has no checksum record" in caplog.text
    damage_truncate(array_file(folder / "3"))
    assert restore(folder)[1]["step"] == 2
    assert "step 3: it does not restore" in caplog.text


@pytest.mark.parametrize("error", [ValueError, Exception])  # Orbax raises Exception itself
def test_damage_is_told_even_where_the_error_says_nothing(tmp_path, error):
    (tmp_path / "4").mkdir()
    (tmp_path / "4" / "file").touch()

    def restore(step):
        raise error

    with pytest.raises(ValueError, match=rf"step 4: it does not restore \({error.__name__}\(\)\)"):
        integrity.restore_last_good(epath.Path(tmp_path), restore)


def test_everything_damaged_is_an_error_that_names_each(folder):
    for step in (1, 2, 3):
        damage_flip(array_file(folder / str(step)))
    with pytest.raises(ValueError, match="no checkpoint in .* step 3: .* step 1: .* start anew"):
        restore(folder)
    assert (folder / "3").is_dir()


def test_unfinished_save_of_a_killed_process_is_cleared(folder):
    shutil.copytree(folder / "3", folder / "4.orbax-checkpoint-tmp")
    assert restore(folder)[1]["step"] == 3
    assert not (folder / "4.orbax-checkpoint-tmp").exists()


def test_other_architecture_names_the_first_parameter_and_both_shapes(folder):
    with pytest.raises(IncompatibleCheckpointError) as error:
        restore(folder, make_state(width=6))
    text = str(error.value)
    assert "params: dense/kernel is (4, 3) in the checkpoint and (4, 6) in the model" in text
    assert "\n" not in text and (folder / "3").is_dir()


def test_check_compatible_compares_names_and_shapes():
    tree = {"a": {"b": np.zeros((2, 3))}, "c": np.zeros(4)}
    check_compatible(tree, {"a": {"b": jnp.ones((2, 3))}, "c": SimpleNamespace(shape=(4,))})
    with pytest.raises(ValueError, match=r"parameter a/b is absent in the checkpoint and \(2, 3\)"):
        check_compatible(tree, {"c": np.zeros(4)})
    with pytest.raises(ValueError, match=r"parameter d is \(1,\) in the checkpoint and absent"):
        check_compatible(tree, tree | {"d": np.zeros(1)})


def test_meta_that_is_not_json_is_refused(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    with pytest.raises(ValueError, match="meta holds a value that is not JSON.*Allowed"):
        checkpointer.save(1, make_state(), {"config": object()})
    checkpointer.close()
    with pytest.raises(ValueError, match="keep_checkpoints is 0"):
        Checkpointer(tmp_path, keep=0)


@pytest.mark.parametrize("below", ["", "checkpoints", "checkpoints/3"])
@pytest.mark.parametrize(("weights", "plus"), [("ema", 0.5), ("raw", 0.0)])
def test_inference_reads_workdir_folder_and_step(folder, below, weights, plus):
    variables, meta = load_for_inference(folder.parent / below, weights)
    np.testing.assert_array_equal(variables["params"]["dense"]["kernel"], np.full((4, 3), 3 + plus))
    np.testing.assert_array_equal(variables["constants"]["frequencies"], np.arange(5) + 3)
    assert variables["params"]["dense"]["kernel"].sharding.device_set == {jax.devices()[0]}
    assert meta["step"] == 3 and variables.keys() == {"params", "constants"}


def test_inference_can_read_onto_a_mesh_and_models_without_constants(tmp_path):
    save_steps(tmp_path / "checkpoints", 1, constants=False, devices=2)
    whole = sharding.replicated(sharding.make_mesh())
    variables, _ = load_for_inference(str(tmp_path), sharding=whole)
    assert variables["params"]["dense"]["bias"].sharding == whole
    assert variables["constants"] == {}
    state, _ = restore(tmp_path / "checkpoints", make_state(constants=False, devices=4))
    assert len(state.params["dense"]["bias"].sharding.device_set) == 4


def test_inference_passes_over_damage_but_not_in_the_step_asked_for(folder, caplog):
    damage_flip(array_file(folder / "3", "ema"))
    assert load_for_inference(folder)[1]["step"] == 2
    assert "step 3" in caplog.text and (folder / "3").is_dir()  # reading changes nothing
    with pytest.raises(ValueError, match=r"3 is damaged: file ema/d/.*folder above"):
        load_for_inference(folder / "3")


def test_a_missing_item_is_damage_and_not_empty_weights(folder):
    shutil.rmtree(folder / "3" / "ema")
    (folder / "checksums" / "3.json").unlink()
    assert load_for_inference(folder)[1]["step"] == 2


def test_what_is_not_a_checkpoint_is_refused_in_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone does not exist; expected a run's workdir"):
        load_for_inference(tmp_path / "gone")
    (tmp_path / "weights.pth").write_text("")
    with pytest.raises(ValueError, match="weights.pth is a file.*diffsda_jax.convert"):
        load_for_inference(tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="not a checkpoint: it holds weights.pth; expected.*Train"):
        load_for_inference(tmp_path)
    with pytest.raises(ValueError, match="weights is 'emma'; allowed: 'ema', 'raw'"):
        load_for_inference(tmp_path, "emma")


def test_converted_weights_read_like_trained_ones_and_can_be_trained_on(tmp_path):
    variables = {"params": {"dense": {"kernel": np.ones((4, 3)), "bias": np.zeros(2)}}}
    variables = jax.tree.map(np.float32, variables)
    constants = {"frequencies": np.arange(5, dtype=np.float32)}
    path = save_converted(tmp_path, variables | {"constants": constants}, {"model": {"kind": "x"}})
    assert str(path) == str(tmp_path / "checkpoints" / "0")
    for weights in ("ema", "raw"):
        found, meta = load_for_inference(tmp_path, weights)
        assert_trees_equal(found, variables | {"constants": constants})
        assert meta["model"] == {"kind": "x"} and meta["step"] == 0
    template = make_state(5.0)
    state, _ = restore(tmp_path / "checkpoints", template)
    assert_trees_equal(copy(state.params), variables["params"])
    assert_trees_equal(copy(state.opt_state), copy(template.opt_state))
    assert int(state.step) == 0
    with pytest.raises(ValueError, match="already holds step 0; give an empty or new directory"):
        save_converted(tmp_path, variables, {})


def test_no_file_of_a_checkpoint_is_a_pickle(folder):
    """Arrays and JSON only: a pickle stream of protocol 2 or later starts with byte 0x80."""
    files = [path for path in (folder / "3").rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files if path.read_bytes()[:1] == b"\x80"]
