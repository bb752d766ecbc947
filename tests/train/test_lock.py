"""One run in a workdir."""

import os
import subprocess
import sys

import pytest

from diffsda_jax import workdirs
from diffsda_jax.train.lock import WorkdirLock


def test_second_run_is_refused_until_the_first_ends(tmp_path):
    with WorkdirLock(tmp_path / "run"):
        with pytest.raises(
            ValueError, match=rf"in use by another run \(pid {os.getpid()} on .*--w"
        ):
            with WorkdirLock(tmp_path / "run"):
                pass
        with WorkdirLock(tmp_path / "other"):
            pass
    with WorkdirLock(tmp_path / "run"):
        pass


def test_lock_of_a_dead_process_does_not_hold(tmp_path):
    code = (
        "import fcntl, os, signal, sys\n"
        "file = open(sys.argv[1], 'a+'); fcntl.flock(file, fcntl.LOCK_EX)\n"
        "file.write('pid 1 on elsewhere'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / ".lock"], check=False)
    assert done.returncode == -9
    with WorkdirLock(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith(f"pid {os.getpid()} on ")


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(
        ValueError, match=r"file/run cannot be written to \(Not a directory\); give"
    ):
        with WorkdirLock(tmp_path / "file" / "run"):
            pass
    with pytest.raises(
        ValueError, match=r"file/run cannot be written to \(Not a directory\); give"
    ):
        workdirs.open_workdir(tmp_path / "file" / "run")
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(ValueError, match="it is read-only.*; give a --workdir"):
        workdirs.open_workdir(tmp_path)


def test_file_system_without_locks_is_let_through_with_a_warning(tmp_path, caplog, monkeypatch):
    def refuse(file, operation):
        raise OSError("no locks here")

    monkeypatch.setattr("fcntl.flock", refuse)
    with WorkdirLock(tmp_path):
        assert "no locks here" in caplog.text and "two runs in it are not detected" in caplog.text
