"""Command line: ``python -m diffsda_jax.main --config=configs/X.py --workdir=DIR``."""

import importlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import cast

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from diffsda_jax.command_line import (
    describe,
    disk_is_full,
    fail,
    flag_value,
    prepare_jax,
)

MODES = (
    "train",
    "eval",
    "zero_shot",
    "first_stage",
    "latents",
    "prior",
    "explore",
    "sampling",
    "distill",
    "report",
    "plan",
)
TRAININGS = {  # modes that train: the module and the function
    "train": ("runs", "run_train"),
    "first_stage": ("first_stage_runs", "run_first_stage"),
    "prior": ("prior_runs", "run_prior"),
    "distill": ("distill_runs", "run_distill"),
}

CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Config file; override options with --config.section.option=value. Left out, the workdir's.",
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run: checkpoints, logs, evaluations. The same again resumes."
)
MODE = flags.DEFINE_enum(
    "mode",
    "train",
    MODES,
    "train: train or resume, then evaluate; eval: evaluate the newest checkpoint; zero_shot: "
    "evaluate the model of --checkpoint on the data of --config, which it never saw; first_stage: "
    "train or fine-tune a frame autoencoder on the frames of a video source; latents: encode the "
    "clips of a video source with a frame autoencoder; prior: encode the training split with the "
    "workdir's sequence model and train a prior over its factors; explore: find directions of the "
    "factors, name them and show what they change; sampling: try samplers with few evaluations of "
    "the network and make the cheapest that is good enough the workdir's default; distill: train a "
    "copy of the workdir's sequence model that samples with 1 to 4 evaluations; report: "
    "write WORKDIR/report.html, one page on what the run learned; plan: print config, parameters, "
    "FLOPs, memory and data, and train nothing.",
)
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "For --mode=zero_shot: workdir or checkpoint of the model."
)
TOPOLOGY = flags.DEFINE_string(
    "topology",
    None,
    "For --mode=plan: chips that need not be there, such as v5e:16x16 (needs libtpu) or cpu:8. The "
    "training step is compiled for them: memory, traffic between chips, and the least time.",
)
COORDINATOR = flags.DEFINE_string(
    "coordinator_address",
    None,
    "Of several processes: host:port of process 0. On TPU pods, under Slurm, Open MPI and in "
    "indexed jobs of Kubernetes it is found out, and so are the two others.",
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Of several processes: how many.")
PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "Of several processes: which this is, from 0."
)


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses the command line; a mistake ends in one line that says what is known instead.

    Raises:
      SystemExit: with status 2, after that line.
    """
    from diffsda_jax import config as configuration
    from diffsda_jax import saved_config

    try:
        path = flag_value(argv, "config")
        if not path and (workdir := workdir_with_config(argv)):
            saved_config.get_config(workdir)  # so that what is wrong with it is said as it is
            path = f"{saved_config.__file__}:{workdir}"
            argv = [argv[0], f"--config={path}", *argv[1:]]
        if path:
            config = configuration.load_config(path)
            configuration.check_overrides(config, argv)
        return flags.FLAGS(argv)
    except (flags.Error, ValueError, OSError) as error:
        fail(describe(error))


def workdir_with_config(argv: Sequence[str]) -> str | None:
    """The workdir on a command line, if its config serves where ``--config`` is left out.

    ``zero_shot`` is about other data than those of the model.
    """
    from diffsda_jax import saved_config

    workdir = flag_value(argv, "workdir")
    if not workdir or flag_value(argv, "mode") == "zero_shot":
        return None
    return workdir if saved_config.has_config(workdir) else None


def describe_missing_config(mode: str, workdir: str | None) -> str:
    """What to give where there is no ``--config``, and no workdir whose config could be taken."""
    if workdir and mode not in ("train", "first_stage", "latents", "zero_shot", "plan"):
        return (
            f"--config is missing, and workdir {workdir} has no config.json of a training; give "
            "the --workdir of a trained run, or the --config that its checkpoint belongs to."
        )
    return "--config is missing; give a file of configs/, such as --config=configs/digits.py."


def run_plan(config: ConfigDict) -> None:
    """Prints what a training would take, here or on the chips that are named."""
    if TOPOLOGY.value is not None:
        from diffsda_jax import topology_plan

        print(topology_plan.make_plan(config, TOPOLOGY.value))
    else:
        from diffsda_jax import plan

        print(plan.make_plan(config))


def run_mode(mode: str, config: ConfigDict, workdir: str) -> None:
    """Imports what a mode needs, and runs it.

    Raises:
      SystemExit: a training was interrupted, with the status of that.
    """
    if mode == "latents":
        from diffsda_jax import latents

        latents.run_latents(config, workdir)
    elif mode == "explore":
        from diffsda_jax import explore_runs

        explore_runs.run_explore(config, workdir)
    elif mode == "sampling":
        from diffsda_jax import sampling_runs

        sampling_runs.run_sampling(config, workdir)
    elif mode == "report":
        from diffsda_jax import report_runs

        path = flag_value(sys.argv, "config")
        print(f"report: {report_runs.run_report(config, workdir, path)}")
    elif mode == "zero_shot":
        from diffsda_jax import zero_shot

        zero_shot.run_zero_shot(config, cast(str, CHECKPOINT.value), workdir)  # see main
    elif mode == "eval":
        from diffsda_jax import runs

        runs.run_eval(config, workdir)
    else:
        from diffsda_jax.train.interrupt import EXIT_INTERRUPTED

        module, function = TRAININGS[mode]
        run = getattr(importlib.import_module(f"diffsda_jax.{module}"), function)
        if run(config, workdir).interrupted:
            raise SystemExit(EXIT_INTERRUPTED)


def main(argv: Sequence[str]) -> None:
    """Runs the mode that the flags name; what a user can mend ends in one line, not in a traceback.

    Raises:
      SystemExit: with status 2, after that line.
    """
    if len(argv) > 1:
        fail(f"unknown argument {argv[1]!r}; options start with --, see --help.")
    if CONFIG.value is None:
        fail(describe_missing_config(MODE.value, WORKDIR.value))
    if WORKDIR.value is None and MODE.value != "plan":
        fail(f"--workdir is missing; --mode={MODE.value} needs the folder of the run.")
    if MODE.value == "zero_shot" and CHECKPOINT.value is None:
        fail("--checkpoint is missing; --mode=zero_shot needs the workdir of a trained model.")
    if MODE.value != "zero_shot" and CHECKPOINT.value is not None:
        fail(f"--checkpoint is for --mode=zero_shot; --mode={MODE.value} finds its in --workdir.")
    if MODE.value != "plan" and TOPOLOGY.value is not None:
        fail(f"--topology is for --mode=plan; --mode={MODE.value} runs on the chips that are here.")
    prepare_jax()
    from diffsda_jax import distributed
    from diffsda_jax.train.console import setup_console
    from diffsda_jax.train.interrupt import EXIT_INTERRUPTED

    setup_console()
    if TOPOLOGY.value is not None:  # makes its own devices, so JAX must not have started
        run_reporting(MODE.value, CONFIG.value, WORKDIR.value)
        return
    try:
        distributed.start(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    except (ValueError, OSError) as error:
        fail(describe(error))
    if not distributed.is_first():
        setup_console(logging.WARNING)
    with distributed.ends_with_others(EXIT_INTERRUPTED):
        run_reporting(MODE.value, CONFIG.value, WORKDIR.value)


def check_processes(mode: str, config: ConfigDict, workdir: str | None) -> None:
    """Refuses several processes for what is the work of one, or that were started otherwise.

    Raises:
      ValueError: on all processes.
    """
    import jax

    from diffsda_jax import config as configuration
    from diffsda_jax import distributed

    if not distributed.several():
        return
    if mode not in TRAININGS:
        raise ValueError(
            f"{jax.process_count()} processes were started, but --mode={mode} is the work of one; "
            f"start one process. Those for several: {', '.join(TRAININGS)}."
        )
    facts = {
        "mode": mode,
        "workdir": workdir,
        "config": configuration.same_everywhere(config),
        "version of jax": jax.__version__,
    }
    distributed.check_same(facts, "Start all processes with the same command.")


def run_reporting(mode: str, config: ConfigDict, workdir: str | None) -> None:
    """Runs one mode; what a user can mend ends in one line, not in a traceback.

    Raises:
      SystemExit: with status 2, after that line.
    """
    from diffsda_jax.train.loop import NonFiniteLossError

    try:
        if TOPOLOGY.value is None:
            check_processes(mode, config, workdir)
        if mode == "plan":
            run_plan(config)
        else:
            assert workdir is not None  # see main
            run_mode(mode, config, workdir)
    except KeyboardInterrupt:
        fail("stopped by Ctrl-C; run the same command again.")
    except RuntimeError as error:
        if os.environ.get("DIFFSDA_TRACEBACK"):
            raise
        if disk_is_full(error):
            fail(describe(error))
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        first = str(error).splitlines()[0]
        fail(
            f"out of memory: {first}. Lower train.batch_size or eval.batch_size, or the widths in "
            "model.* (of latents, first_stage.chunk_frames); --mode=plan prints what a step needs."
        )
    except (ValueError, OSError, ImportError, NonFiniteLossError) as error:
        if os.environ.get("DIFFSDA_TRACEBACK"):  # for reports of errors that look wrong
            raise
        fail(describe(error))


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
