"""Several processes as one run: what starts them, and whole runs on this machine."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from diffsda_jax import distributed
from diffsda_jax.train.interrupt import EXIT_INTERRUPTED

SECONDS = 300
# Widths and an evaluation as small as they can be; a rate that does not depend on the run's length.
TINY = {
    "model.width": 16,
    "model.encoder_width": 16,
    "model.hidden_dim": 8,
    "optimizer.schedule": "constant",
    "optimizer.warmup_steps": 0,
    "train.log_every_steps": 1,
    "eval.parts": "('reconstruction',)",
    "eval.num_steps": 2,
    "eval.num_swaps": 8,
    "eval.num_clips": 16,
    "eval.num_train_clips": 16,
    "mesh.rules": "(('','largest'),)",
}


@pytest.fixture
def clean(monkeypatch):
    """An environment that says nothing of several processes."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "TPU_", "MEGASCALE_", "KUBERNETES_", "JOB_")):
            monkeypatch.delenv(name)
    return monkeypatch


@pytest.fixture
def started(monkeypatch):
    """What ``jax.distributed.initialize`` is called with."""
    calls = []
    monkeypatch.setattr("jax.distributed.initialize", lambda **given: calls.append(given))
    return calls


SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_PROCID": "1"}
OPEN_MPI = {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:2", "OMPI_COMM_WORLD_RANK": "1"}


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        (SLURM | {"SLURM_NTASKS": "2"}, "Slurm"),
        (SLURM | {"SLURM_NTASKS": "1"}, ""),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}, ""),  # within salloc, but not started by srun
        (OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "4"}, "Open MPI"),
        (OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1"}, ""),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "TPU"),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, ""),
        ({"MEGASCALE_NUM_SLICES": "2", "TPU_WORKER_HOSTNAMES": "a"}, "TPU slices"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, ""),
        ({}, ""),
    ],
)
def test_processes_are_started_only_where_the_environment_has_several(
    clean, started, variables, name
):
    for variable, value in variables.items():
        clean.setenv(variable, value)
    assert distributed.environment() == name
    distributed.start()
    assert len(started) == bool(name)


def test_flags_say_how_many_processes_there_are(clean, started):
    distributed.start("localhost:1234", 2, 1)
    assert started == [
        {"coordinator_address": "localhost:1234", "num_processes": 2, "process_id": 1}
    ]
    distributed.start("localhost:1234", 1, 0)  # one needs no other
    assert len(started) == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("localhost:1234", None, None), "--num_processes, --process_id is missing"),
        ((None, 2, 0), "--coordinator_address is missing"),
        (("localhost:1234", 2, 2), "--process_id is 2 and --num_processes 2"),
        (("localhost:1234", 0, 0), "1 or more"),
        (("localhost", 2, 0), "host and port"),
    ],
)
def test_flags_that_do_not_make_a_run_are_named(clean, started, flags, words):
    with pytest.raises(ValueError, match=words):
        distributed.start(*flags)
    assert not started


def test_processes_that_do_not_meet_are_told_so(clean, monkeypatch):
    def fail(**given):
        raise RuntimeError("DEADLINE_EXCEEDED")

    monkeypatch.setattr("jax.distributed.initialize", fail)
    with pytest.raises(ConnectionError, match="10.0.0.1:5.*DEADLINE_EXCEEDED.*five minutes"):
        distributed.start("10.0.0.1:5", 2, 0)


def test_what_differs_between_processes_is_named(monkeypatch):
    facts = {"mode": "train", "config": {"train": {"batch_size": 16, "num_steps": 3}}}
    distributed.check_same(facts, "Start again.")  # one process agrees with itself
    other = {"mode": "train", "config.train.batch_size": 8, "config.train.num_steps": 3}
    monkeypatch.setattr(
        distributed, "gather_json", lambda own: [own, own, {"host": "b", "facts": other}]
    )
    with pytest.raises(
        ValueError, match="process 2 .on b.*batch_size is 8 there and 16 on process"
    ):
        distributed.check_same(facts, "Start again.")


def test_one_process_does_everything_itself():
    assert not distributed.several() and distributed.is_first()
    assert distributed.gather_json({"a": 1}) == [{"a": 1}]
    assert distributed.together(lambda: 3, only_first=True) == 3
    with pytest.raises(SystemExit), distributed.ends_with_others(3):
        raise SystemExit(2)


class Processes:
    """``python -m diffsda_jax.main`` several times, as one run on this machine."""

    def __init__(self, workdir, processes, devices, differing=None, mode="train", **options):
        """Starts them; ``differing`` are options by process."""
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        self.workdir, self.running = workdir, []
        for index in range(processes):
            config = TINY | {"train.num_steps": 3, "mesh.fsdp": 2} | options
            config |= (differing or {}).get(index, {})
            file = config.pop("config_file", "configs/japanese_vowels.py")
            command = [sys.executable, "-m", "diffsda_jax.main", f"--workdir={workdir}"]
            command += [f"--config={file}", f"--mode={mode}"]
            command += [f"--config.{name}={value}" for name, value in config.items()]
            if processes > 1:
                command += [f"--coordinator_address=localhost:{port}", f"--process_id={index}"]
                command += [f"--num_processes={processes}"]
            env = os.environ | {
                "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            }
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            self.running.append(subprocess.Popen(command, env=env, **pipes))

    def end(self, status=0):
        """Waits for all; what each printed."""
        try:
            printed = [process.communicate(timeout=SECONDS)[0] for process in self.running]
        finally:
            for process in self.running:
                process.kill()
        assert [process.returncode for process in self.running] == [status] * len(printed), printed
        return printed

    def wait_for_step(self, number):
        """Until a step is in the log."""
        file, end = self.workdir / "logs" / "metrics.jsonl", time.monotonic() + SECONDS
        while not file.exists() or number not in losses(self.workdir):
            assert time.monotonic() < end and all(p.poll() is None for p in self.running)
            time.sleep(0.2)


def losses(workdir):
    """Loss by step."""
    lines = (workdir / "logs" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines if line.endswith("}")]
    return {record["step"]: record["train/loss"] for record in records if "train/loss" in record}


@pytest.mark.slow
def test_a_run_moves_between_numbers_of_processes_and_devices(tmp_path):
    """2 processes x 4 devices, then 1 x 2, then 2 x 4, against one process with one device."""
    moved, alone = tmp_path / "moved", tmp_path / "alone"
    for processes, devices, steps in ((2, 4, 2), (1, 2, 4), (2, 4, 6)):
        options = {"train.num_steps": steps, "mesh.fsdp": 2 if processes > 1 else 1}
        printed = Processes(moved, processes, devices, **options).end()
        assert f"{steps} of {steps} steps done" in printed[0]
        assert all("steps done" not in text for text in printed[1:])  # process 0 speaks for all
    Processes(alone, 1, 1, **{"train.num_steps": 6, "mesh.fsdp": 1}).end()
    found, wanted = losses(moved), losses(alone)
    assert sorted(found) == sorted(wanted) == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose([found[step] for step in wanted], list(wanted.values()), rtol=1e-5)
    assert (moved / "eval" / "00000006" / "metrics.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "folder"), [("prior", "prior"), ("distill", "distilled")])
def test_what_is_trained_on_a_model_moves_as_well(tmp_path, mode, folder):
    """One process, then 2 x 2 devices, against one process."""
    moved, alone = tmp_path / "moved", tmp_path / "alone"
    one = {"mesh.fsdp": 1, "eval.judge_steps": 5, "eval.num_samples": 8}
    one |= {"prior.width": 16, "prior.num_layers": 1, "distill.batch_size": 8}
    Processes(moved, 1, 1, **one).end()
    shutil.copytree(moved, alone)
    Processes(moved, 1, 1, mode=mode, **one, **{f"{mode}.num_steps": 1}).end()
    one[f"{mode}.num_steps"] = 3
    Processes(moved, 2, 2, mode=mode, **one | {"mesh.fsdp": 2}).end()
    Processes(alone, 1, 1, mode=mode, **one).end()
    found, wanted = losses(moved / folder), losses(alone / folder)
    assert sorted(found) == sorted(wanted) == [1, 2, 3]
    np.testing.assert_allclose([found[step] for step in wanted], list(wanted.values()), rtol=1e-5)


@pytest.mark.slow
def test_a_first_stage_moves_as_well(tmp_path):
    """With a discriminator from the second step on: one process, then 2 x 2, against one."""
    moved, alone = tmp_path / "moved", tmp_path / "alone"
    options = {"config_file": "configs/digits.py", "train.batch_size": 8, "data.length": 2}
    own = {"channels": 32, "channel_mults": "(1, 2)", "num_res_blocks": 1, "codebook_size": 16}
    own |= {"attention_levels": "()", "discriminator_weight": 0.5, "discriminator_channels": 8}
    own |= {"discriminator_layers": 1, "discriminator_start_step": 1}
    options |= {f"first_stage_training.{name}": value for name, value in own.items()}
    one = options | {"mesh.fsdp": 1}
    Processes(moved, 1, 1, mode="first_stage", **one | {"train.num_steps": 1}).end()
    Processes(moved, 2, 2, mode="first_stage", **options).end()
    Processes(alone, 1, 1, mode="first_stage", **one).end()
    found, wanted = losses(moved), losses(alone)
    assert sorted(found) == sorted(wanted) == [1, 2, 3]
    np.testing.assert_allclose([found[step] for step in wanted], list(wanted.values()), rtol=1e-5)
    assert (moved / "eval" / "00000003" / "metrics.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("told", [0, 1])
def test_a_signal_to_one_process_ends_all_with_a_checkpoint(tmp_path, told):
    processes = Processes(tmp_path, 2, 2, **{"train.num_steps": 100_000})
    processes.wait_for_step(2)
    processes.running[told].send_signal(signal.SIGTERM)
    printed = processes.end(EXIT_INTERRUPTED)
    assert "stopped by preemption" in printed[0]
    (step,) = [
        int(entry.name) for entry in (tmp_path / "checkpoints").iterdir() if entry.name.isdecimal()
    ]
    assert step == max(losses(tmp_path)) >= 2


@pytest.mark.slow
def test_another_config_on_one_process_ends_all_before_anything_is_done(tmp_path):
    other = {1: {"train.batch_size": 8, "data.num_threads": 1}}
    for text in Processes(tmp_path, 2, 2, other).end(2):
        assert "process 1 (on " in text and "is not of the same run as process 0" in text
        assert "config.train.batch_size is 8 there and" in text and "num_threads" not in text
    assert not (tmp_path / "config.json").exists()


def write_table(path, first=0.0):
    """A CSV file of two columns."""
    values = np.random.default_rng(0).normal(size=(60, 2))
    values[0] = first
    path.write_text("a,b\n" + "".join(f"{a:.6f},{b:.6f}\n" for a, b in values))


@pytest.mark.slow
def test_other_data_on_one_process_end_all_before_anything_is_done(tmp_path):
    table = tmp_path / "table.csv"
    write_table(table)
    write_table(tmp_path / "other.csv", first=1.0)
    options = {"config_file": "configs/csv.py", "data.length": 4, "source.options.path": table}
    other = {1: {"source.options.path": tmp_path / "other.csv"}}
    for printed in Processes(tmp_path / "run", 2, 2, other, **options).end(2):
        assert "process 1 (on " in printed and "data (by its fingerprint) is" in printed
    missing = {1: {"source.options.path": tmp_path / "nowhere.csv"}}
    first, second = Processes(tmp_path / "run", 2, 2, missing, **options).end(2)
    assert "process 1 cannot go on: " in first and "nowhere.csv" in first
    assert "nowhere.csv" in second and "cannot go on" not in second


@pytest.mark.slow
def test_work_of_one_process_is_refused_for_several(tmp_path):
    for printed in Processes(tmp_path, 2, 1, mode="eval").end(2):
        assert "2 processes were started, but --mode=eval is the work of one" in printed
