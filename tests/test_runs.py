import json
import logging
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image
from processes import one_device_environment

from diffsda_jax import DiffSDA, runs, workdirs
from diffsda_jax import config as configuration
from diffsda_jax.train import checkpoint

pytestmark = pytest.mark.usefixtures("optimised")


def tiny(**train):
    config = runs.shrink(configuration.load_config("configs/japanese_vowels.py"))
    config.data.length = 6
    config.train.update(num_steps=6, checkpoint_every_steps=2, **train)
    config.eval.update(num_clips=40, num_train_clips=60)
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One finished run on real data that several tests look at."""
    workdir = tmp_path_factory.mktemp("run")
    return workdir, runs.run_train(tiny(), workdir)


def test_a_run_leaves_what_it_says(finished):
    workdir, result = finished
    assert int(result.state.step) == 6
    assert json.loads((workdir / "config.json").read_text())["config"]["train"]["num_steps"] == 6
    assert (workdir / "logs" / "metrics.jsonl").stat().st_size
    assert (workdir / "eval" / "00000006" / "swap_series.png").stat().st_size
    metrics = json.loads((workdir / "eval" / "00000006" / "metrics.json").read_text())["metrics"]
    assert {"verification/gap_points", "swap/static_kept_percent"} <= metrics.keys()


def test_the_checkpoint_serves_inference(finished):
    workdir, result = finished
    model = DiffSDA.from_checkpoint(workdir)
    for ours, theirs in zip(
        jax.tree.leaves(model.variables["params"]), jax.tree.leaves(result.state.ema), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    assert model.meta["step"] == 6 and model.normalizer.mean.shape == (12,)
    assert model.meta["config"]["source"]["name"] == "japanese_vowels"


def test_eval_mode_repeats_the_evaluation_of_the_run(finished):
    workdir, _ = finished
    file = workdir / "eval" / "00000006" / "metrics.json"
    before = json.loads(file.read_text())["metrics"]
    after = runs.run_eval(tiny(), workdir).metrics
    assert before.keys() == after.keys()
    for name, value in after.items():
        assert value == pytest.approx(before[name], rel=1e-3, abs=1e-3), name


def test_a_resumed_run_ends_with_the_bits_of_an_unbroken_one(tmp_path):
    config, first = tiny(), tiny()
    first.train.num_steps = 4  # a constant rate does not depend on the length of the run
    first.optimizer.schedule = config.optimizer.schedule = "constant"
    whole = runs.run_train(config, tmp_path / "whole")
    runs.run_train(first, tmp_path / "parts")
    resumed = runs.run_train(config, tmp_path / "parts")
    assert int(resumed.state.step) == 6
    for a, b in zip(jax.tree.leaves(whole.state), jax.tree.leaves(resumed.state), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_workdir_of_another_config_is_refused(finished):
    workdir, _ = finished
    config = tiny()
    config.model.dynamic_dim = 3
    with pytest.raises(ValueError, match="belongs to another run: config.model.dynamic_dim was 2"):
        runs.run_train(config, workdir)


def test_a_workdir_from_before_an_option_came_goes_on(finished, tmp_path):
    known = json.loads((finished[0] / "config.json").read_text())
    del known["config"]["model"]["center_dynamic"], known["config"]["model"]["precision"]
    (tmp_path / "config.json").write_text(json.dumps(known))
    config = tiny()
    workdirs.check_workdir(tmp_path, runs.experiments.build(config))
    config.model.center_dynamic = True
    with pytest.raises(ValueError, match="config.model.center_dynamic was False and is now True"):
        workdirs.check_workdir(tmp_path, runs.experiments.build(config))


def test_what_is_measured_may_change_within_a_workdir(finished, caplog):
    workdir, _ = finished
    config = tiny()
    config.eval.num_swaps, config.data.num_threads = 4, 1
    with caplog.at_level(logging.INFO, logger="diffsda_jax"):
        workdirs.check_workdir(workdir, runs.experiments.build(config))
    assert "config.eval.num_swaps was 8 and is now 4" in caplog.text
    assert "config.data.num_threads was 2 and is now 1" in caplog.text


def test_a_finished_run_is_evaluated_again(finished, capsys):
    workdir, _ = finished
    (workdir / "eval" / "00000006" / "metrics.json").unlink()
    result = runs.run_train(tiny(), workdir)
    assert int(result.state.step) == 6 and not result.interrupted
    assert (workdir / "eval" / "00000006" / "metrics.json").exists()
    assert "static eer" in capsys.readouterr().out


def test_a_start_that_fails_leaves_the_workdir_free(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        runs.run_train(tiny(init_from="/nowhere"), tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_a_foreign_config_json_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match="config.json was not written by this program"):
        workdirs.check_workdir(tmp_path, runs.experiments.build(tiny()))


def test_init_from_starts_with_the_weights_of_a_checkpoint(finished, tmp_path):
    workdir, result = finished
    config = tiny(init_from=str(workdir))
    experiment = runs.experiments.build(config)
    mesh = workdirs.sharding.make_mesh()
    transformation, _, _ = runs.experiments.make_training(experiment, mesh)
    state = runs.experiments.initial_state(experiment, transformation, mesh)
    assert int(state.step) == 0
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(result.state.ema), strict=True):
        np.testing.assert_array_equal(a, b)


def video_config(root, **options):
    config = configuration.load_config("configs/video_folder.py")
    config.source.options.update(root=str(root), **options)
    return config


def csv_config(path, text):
    path.write_text(text)
    config = configuration.load_config("configs/csv.py")
    config.data.length = 4
    config.source.options.path = str(path)
    return config


def bad_inputs(folder):
    """What a user may get wrong: a way to do it, and the words of the message."""
    (folder / "empty").mkdir()
    (folder / "broken").mkdir()
    for name in "abc":
        (folder / "broken" / f"{name}.mp4").write_bytes(b"not a video")
    for clip in ("one", "two"):
        (folder / "short" / clip).mkdir(parents=True)
        frame = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
        frame.save(folder / "short" / clip / "0.png")
    table = folder / "table.csv"
    rows = [f"{i},{i / 7}" for i in range(40)]
    words = "\n".join(["a,b", *rows[:5], "6,high", *rows[5:]])
    infinite = "\n".join(["a,b", *rows[:5], "6,inf", *rows[5:]])
    train = runs.run_train
    bad_split = tiny()
    bad_split.eval.split = "valid"
    return {
        "missing folder": (lambda: train(video_config(folder / "no"), folder / "w"), ["no"]),
        "empty folder": (lambda: train(video_config(folder / "empty"), folder / "w"), ["empty"]),
        "broken video": (lambda: train(video_config(folder / "broken"), folder / "w"), ["a.mp4"]),
        "short clip": (lambda: train(video_config(folder / "short"), folder / "w"), ["one"]),
        "text for a number": (
            lambda: train(csv_config(table, words), folder / "w"),
            ["table.csv", "line 7", "'b'", "'high'"],
        ),
        "infinite number": (
            lambda: train(csv_config(table, infinite), folder / "w"),
            ["table.csv", "inf"],
        ),
        "no checkpoint": (lambda: runs.run_eval(tiny(), folder), ["not a checkpoint"]),
        "no workdir": (lambda: runs.run_eval(tiny(), folder / "no"), ["does not exist"]),
        "file as workdir": (lambda: train(tiny(), table), ["table.csv is a file"]),
        "bucket as workdir": (lambda: train(tiny(), "gs://bucket/run"), ["gs://bucket/run"]),
        "unknown split": (lambda: train(bad_split, folder / "w"), ["'valid'", "'test'"]),
    }


def test_bad_input_is_one_line_that_names_it(tmp_path):
    for what, (do, words) in bad_inputs(tmp_path).items():
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            do()
        for word in words:
            assert word in str(caught.value), f"{what}: {caught.value}"
        assert "\n" not in str(caught.value).strip(), what
    assert not (tmp_path / "w" / "checkpoints").exists()


def test_a_checkpoint_of_another_architecture_is_named(finished):
    workdir, _ = finished
    config = tiny()
    config.model.hidden_dim = 9
    with pytest.raises(ValueError, match="another architecture: parameter .* in the model"):
        runs.run_eval(config, workdir)


def command(workdir, *overrides, mode="train"):
    return [
        sys.executable,
        "-m",
        "diffsda_jax.main",
        "--config=configs/japanese_vowels.py",
        f"--workdir={workdir}",
        f"--mode={mode}",
        *(f"--config.{override}" for override in overrides),
    ]


SMALL = (
    "model.width=4",
    "model.encoder_width=4",
    "model.hidden_dim=8",
    "train.batch_size=8",
    "train.checkpoint_every_steps=10",
    "eval.num_steps=2",
    "eval.num_swaps=8",
    "eval.judge_steps=5",
    "eval.parts=('verification',)",
)


def run(*args, **kwargs):
    environment = one_device_environment()
    return subprocess.run(args[0], capture_output=True, text=True, env=environment, **kwargs)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("modle.width=4",), ["'modle'", "Did you mean 'model'"]),
        (("train.batch_size=0",), ["batch_size is 0", "positive multiples of 1"]),
        (("model.recurrence=gru",), ["model.recurrence is 'gru'", "'lstm'", "'reference'"]),
    ],
)
def test_bad_input_is_one_line(tmp_path, overrides, words):
    done = run(command(tmp_path / "run", *overrides))
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("diffsda_jax: error: ")
    for word in words:
        assert word in done.stderr
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_sigterm_saves_and_leaves_within_ten_seconds(tmp_path):
    log = tmp_path / "log.txt"
    with log.open("w") as file:
        process = subprocess.Popen(
            command(tmp_path / "run", *SMALL, "train.num_steps=1000000"),
            stderr=file,
            stdout=file,
            env=one_device_environment(),
        )
        wait_for(lambda: steps_saved(tmp_path / "run"), process)
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        code = process.wait(30)
    assert time.monotonic() - began < 10 and code == 3, log.read_text()
    assert "stopped by SIGTERM" in log.read_text() and "same command again" in log.read_text()
    step = max(steps_saved(tmp_path / "run"))
    assert DiffSDA.from_checkpoint(tmp_path / "run").meta["step"] == step


def steps_saved(workdir):
    folder = workdir / checkpoint.FOLDER
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    return [int(name) for name in names if name.isdecimal()]


def wait_for(condition, process, seconds=120):
    limit = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the run ended early"
        assert time.monotonic() < limit
        time.sleep(0.05)


@pytest.mark.slow
def test_killed_five_times_ends_with_the_bits_of_an_unbroken_run(tmp_path):
    args = (*SMALL, "train.num_steps=600", "train.log_every_steps=1")
    assert run(command(tmp_path / "whole", *args)).returncode == 0
    rng = np.random.default_rng(0)
    kills = 0
    while kills < 5:
        process = subprocess.Popen(
            command(tmp_path / "parts", *args),
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=one_device_environment(),
        )
        before = max(steps_saved(tmp_path / "parts"), default=-1)
        wait_for(
            lambda before=before: max(steps_saved(tmp_path / "parts"), default=-1) > before, process
        )
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        process.wait()
        kills += 1
    done = run(command(tmp_path / "parts", *args))
    assert done.returncode == 0, done.stderr
    losses = [last_losses(tmp_path / name) for name in ("whole", "parts")]
    assert losses[0] == losses[1]
    for weights in ("raw", "ema"):
        whole, parts = (
            DiffSDA.from_checkpoint(tmp_path / name, weights).variables
            for name in ("whole", "parts")
        )
        for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
            np.testing.assert_array_equal(a, b)


def last_losses(workdir):
    lines = (workdir / "logs" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    by_step = {r["step"]: r["train/loss"] for r in records if "train/loss" in r}
    return [by_step[step] for step in sorted(by_step)][-20:]


def test_a_missing_pair_file_is_found_before_training(tmp_path):
    config = tiny()
    config.eval.pairs = str(tmp_path / "pairs.csv")
    with pytest.raises(FileNotFoundError, match="pair file .*pairs.csv is missing"):
        runs.run_train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
