import csv
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from diffsda_jax.study import Metric, Study
from diffsda_jax.study import __main__ as command
from diffsda_jax.study.description import change_study, check_study, load_study
from diffsda_jax.study.launch import Ended, Launcher, Slot, make_slots
from diffsda_jax.study.runs import make_runs, run_study
from diffsda_jax.study.table import csv_table, find_missing, make_cell, markdown_table

CONFIG = "configs/japanese_vowels.py"
ERROR, GAP = "verification/static_eer_percent", "verification/gap_points"


def make_study(**changes):
    values = {
        "title": "Widths",
        "question": "Which?",
        "config": CONFIG,
        "common": {"train.num_steps": 2},
        "variants": {"narrow": {"model.dynamic_dim": 1}, "wide one": {"model.dynamic_dim": 8}},
        "metrics": [Metric(ERROR, "error", "low"), Metric(GAP, "gap", "high")],
        "seeds": (0, 1),
    }
    return Study(**(values | changes))


class Fake(Launcher):
    """Does what ``main`` does to a workdir, with made-up numbers, and remembers the commands."""

    def __init__(self, fail=lambda options: False, metrics=(ERROR, GAP)):
        super().__init__()
        self.calls, self.slots, self.fail, self.metrics = [], [], fail, metrics

    def __call__(self, command, log, slot):
        options = dict(word.removeprefix("--").partition("=")[::2] for word in command[3:])
        self.calls.append(options)
        self.slots.append(slot)
        log.write_text("all is well\n")
        if self.fail(options):
            log.write_text("step 1\ndiffsda_jax: error: no luck\n\n")
            return Ended(2, 1.0, 1.0)
        self.write(Path(options["workdir"]), options)
        return Ended(0, 3.0, 2.0)

    def write(self, workdir, options):
        where = workdir / ("prior/eval" if options["mode"] == "prior" else "eval") / "00000002"
        where.mkdir(parents=True, exist_ok=True)
        width, seed = int(options.get("config.model.dynamic_dim", 0)), int(options["config.seed"])
        start = options.get("config.eval.start", "")
        values = {name: width + 10.0 * seed + len(start) for name in self.metrics}
        if options["mode"] == "prior":
            values = {"generation/distance": float(options["config.eval.num_steps"])}
        (where / "metrics.json").write_text(json.dumps({"metrics": values}))


def test_two_variants_with_two_seeds_give_a_table_a_plot_and_records(tmp_path, capsys):
    launcher = Fake()
    assert command.conduct(make_study(), tmp_path, launcher=launcher) == []
    assert [c["mode"] for c in launcher.calls] == ["train"] * 4
    assert len({c["workdir"] for c in launcher.calls}) == 4
    seeds = [(c["config.seed"], c["config.eval.seed"]) for c in launcher.calls]
    assert seeds == [("0", "0"), ("1", "1")] * 2
    assert {c["config.train.num_steps"] for c in launcher.calls} == {"2"}
    table = (tmp_path / "table.md").read_text()
    # Narrow: 1 and 11; wide: 8 and 18. Standard deviation (n - 1) of both: 7.07.
    assert "| narrow | 2 | **6.0 ± 7.1** | 6.0 ± 7.1 |" in table
    assert "| wide one | 2 | 13.0 ± 7.1 | **13.0 ± 7.1** |" in table
    assert "4 of 4 runs, 12 s in all (8 s of CPU)" in table and "Which?" in table
    assert "| narrow | 2 | **6.0 ± 7.1**" in capsys.readouterr().out
    assert (tmp_path / "plot.png").stat().st_size > 5_000
    record = json.loads((tmp_path / "study.json").read_text())
    assert len(record["runs"]) == 4 and record["machine"]["versions"]["jax"]
    assert record["runs"][3]["overrides"]["model.dynamic_dim"] == 8
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert rows[1]["variant"] == "wide one" and rows[1][f"{GAP} mean"] == "13"
    assert rows[1][f"{GAP} values"] == "8 18"
    assert float(rows[0][f"{ERROR} standard deviation"]) == pytest.approx(50**0.5, abs=1e-4)


def test_what_is_done_is_not_done_again_and_what_is_new_is(tmp_path):
    command.conduct(make_study(), tmp_path, launcher=Fake())
    again = Fake()
    assert command.conduct(make_study(seeds=(0, 1, 2)), tmp_path, launcher=again) == []
    assert [c["config.seed"] for c in again.calls] == ["2", "2"]
    longer = Fake()
    changed = change_study(make_study(), ["config.train.num_steps=3"], None)
    command.conduct(changed, tmp_path, launcher=longer)
    assert len(longer.calls) == 4 and "| narrow | 2 |" in (tmp_path / "table.md").read_text()


def test_a_config_file_that_was_edited_makes_its_runs_new(tmp_path):
    file = tmp_path / "mine.py"
    text = (
        "from diffsda_jax.config import load_config\n"
        "def get_config():\n"
        f"    config = load_config({CONFIG!r})\n"
        "    config.{option} = {value}\n"
        "    return config\n"
    )
    study = make_study(config=str(file), variants={"only": {}}, seeds=(0,))
    modes = []
    for option, value in (
        ("optimizer.learning_rate", 3e-3),
        ("optimizer.learning_rate", 2.5e-3),  # another model
        ("eval.num_steps", 5),  # with the learning rate of the config below it
        ("eval.num_steps", 12),  # the same model, evaluated anew
        ("eval.num_steps", 12),
    ):
        file.write_text(text.replace("{option}", option).replace("{value}", str(value)))
        launcher = Fake()
        assert command.conduct(study, tmp_path / "out", launcher=launcher) == []
        modes.append([call["mode"] for call in launcher.calls])
    assert modes == [["train"], ["train"], ["train"], ["eval"], []]


def test_a_failed_run_is_named_does_not_stop_the_others_and_is_tried_again(tmp_path, capsys):
    def is_unlucky(options):
        return options["config.model.dynamic_dim"] == "1" and options["config.seed"] == "1"

    problems = command.conduct(make_study(), tmp_path, launcher=Fake(is_unlucky))
    assert len(problems) == 1 and "narrow, seed 1 failed: --mode=train" in problems[0]
    assert "status 2: diffsda_jax: error: no luck" in problems[0]
    table = (tmp_path / "table.md").read_text()
    assert "| narrow | 1 | **1** | 1 |" in table and "| wide one | 2 |" in table
    assert problems[0] in table and "3 of 4 runs" in table
    again = Fake()
    assert command.conduct(make_study(), tmp_path, launcher=again) == []
    assert [c["config.seed"] for c in again.calls] == ["1"]


def test_variants_that_differ_in_the_evaluation_share_a_model(tmp_path):
    study = make_study(variants={s: {"eval.start": s} for s in ("random", "zero", "target")})
    launcher = Fake(lambda options: options.get("config.eval.start") == "zero")
    problems = command.conduct(study, tmp_path, launcher=launcher)
    modes = [(c["mode"], c["config.eval.start"], c["config.seed"]) for c in launcher.calls]
    assert modes == [
        ("train" if start == "random" else "eval", start, seed)
        for seed in "01"
        for start in ("random", "zero", "target")
    ]
    assert len({c["workdir"] for c in launcher.calls}) == 2 and len(problems) == 2
    table = (tmp_path / "table.md").read_text()
    assert "| random | 2 | **11.0 ± 7.1**" in table and "| zero | 0 | - | - |" in table
    # Each evaluation lies with its own run, not with the model.
    assert len(list(tmp_path.glob("runs/*/eval/00000002/metrics.json"))) == 4
    again = Fake()
    assert command.conduct(study, tmp_path, launcher=again) == []
    assert [c["mode"] for c in again.calls] == ["eval", "eval"]


def test_priors_are_trained_on_a_shared_model_each_in_a_folder_of_its_own(tmp_path):
    study = make_study(
        variants={f"{n} steps": {"eval.num_steps": n} for n in (4, 8)},
        metrics=[Metric("generation/distance", "distance", "low")],
        modes=("prior",),
        seeds=(0,),
    )
    launcher = Fake()
    assert command.conduct(study, tmp_path, launcher=launcher) == []
    assert [c["mode"] for c in launcher.calls] == ["train", "prior", "prior"]
    assert "| 4 steps | 1 | **4** |" in (tmp_path / "table.md").read_text()
    assert len(list(tmp_path.glob("runs/*/prior/eval/*/metrics.json"))) == 2
    # Training evaluated the model for the first alone, which is no result of any.
    assert [list(run.result()["metrics"]) for run in make_runs(study, tmp_path)] == [
        ["generation/distance"]
    ] * 2


def test_seconds_of_a_run_are_those_of_all_starts(tmp_path):
    variants = {"only": {"eval.num_steps": 4}}
    study = make_study(variants=variants, modes=("eval", "prior"), seeds=(0,))
    command.conduct(study, tmp_path, launcher=Fake(lambda options: options["mode"] == "prior"))

    class Stopped(Fake):
        def __call__(self, command, log, slot):
            self.stop()
            return Ended(3, 5.0, 4.0)

    with pytest.raises(KeyboardInterrupt):
        command.conduct(study, tmp_path, launcher=Stopped())
    # 3 s of training, then 1 s of a prior that failed, 5 s of an evaluation that was stopped.
    assert command.conduct(study, tmp_path, launcher=Fake()) == []
    (run,) = make_runs(study, tmp_path)
    assert run.result()["seconds"] == {"train": 3.0, "prior": 1.0 + 3.0, "eval": 5.0 + 3.0}
    assert run.result()["cpu_seconds"] == 2 + 1 + 4 + 2 + 2


def test_versions_are_told_where_the_package_is_not_installed(monkeypatch):
    monkeypatch.setattr(command, "PACKAGES", ("jax", "no_such_package"))
    versions = command.describe_machine()["versions"]
    assert versions["jax"] and versions["no_such_package"] is None


def test_a_metric_that_no_run_has_is_named_with_the_nearest(tmp_path):
    study = make_study(metrics=[Metric("verification/gap", "gap"), Metric(ERROR, "error")])
    problems = command.conduct(study, tmp_path, launcher=Fake())
    assert len(problems) == 1 and f"Did you mean '{GAP}'" in problems[0]
    assert "| narrow | 2 | - | 6.0 ± 7.1 |" in (tmp_path / "table.md").read_text()
    assert find_missing(study, {"narrow": [], "wide one": []}) == []


def test_models_are_worked_on_at_once_one_in_each_slot(tmp_path):
    meet = threading.Barrier(2)

    class Both(Fake):
        def __call__(self, command, log, slot):
            meet.wait(timeout=20)  # passes only if two commands run at once
            return super().__call__(command, log, slot)

    launcher = Both()
    slots = [Slot({"A": "1"}), Slot({"A": "2"})]
    assert run_study(make_runs(make_study(), tmp_path), slots, launcher, lambda line: None) == {}
    assert len(launcher.calls) == 4
    assert {slot.environment["A"] for slot in launcher.slots} == {"1", "2"}


def test_cells_show_the_digits_that_the_spread_gives_meaning():
    assert str(make_cell([46.913, 46.913 + 0.0624])) == "46.944 ± 0.044"
    assert str(make_cell([123.4, 171.9])) == "148 ± 34"
    assert str(make_cell([2.0, 2.0])) == "2 ± 0"
    assert str(make_cell([0.12345])) == "0.123" and str(make_cell([])) == "-"


def test_a_column_without_a_better_end_marks_nothing():
    study = make_study(metrics=[Metric(ERROR, "error")])
    measured = {"narrow": [{ERROR: 1.0}], "wide one": [{ERROR: 2.0}]}
    assert "**" not in markdown_table(study, measured)
    assert csv_table(study, measured).splitlines()[1] == "narrow,1,1,,1"


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"variants": {}}, "variants is empty"),
        ({"seeds": (1, 1)}, "seeds \\(1, 1\\) repeat"),
        ({"modes": ("sample",)}, "unknown mode of a study: 'sample'"),
        ({"x": {"narrow": 1}}, "x names narrow; it must have the names of the variants"),
        ({"common": {"eval.seed": 3}}, "sets eval.seed; seeds are given by seeds="),
        ({"variants": {"a": {"seed": 1}}}, "sets seed"),
        ({"variants": {"a": {}, "b": {}}}, "variants 'a' and 'b' are equal"),
    ],
)
def test_a_study_that_cannot_be_run_is_refused(changes, match):
    with pytest.raises(ValueError, match=match):
        make_study(**changes)
    with pytest.raises(ValueError, match="unknown better 'lower'"):
        Metric(ERROR, "error", "lower")


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        ({"model.dynamic_dims": 2}, "'narrow'.*unknown key of config.model: 'dynamic_dims'"),
        ({"model.dynamic_dim": "two"}, "config.model.dynamic_dim='two'.*must be like 2"),
        ({"model": 2}, "config.model"),
        ({"config": f"{CONFIG}:other"}, "unknown variant 'other'"),
        ({"config": "configs/none.py"}, "configs/none.py does not exist"),
    ],
)
def test_bad_options_of_a_variant_are_named(overrides, match):
    with pytest.raises((ValueError, FileNotFoundError), match=match):
        check_study(make_study(variants={"narrow": overrides}))


def test_options_of_the_command_line_reach_all_runs_but_not_what_is_compared():
    changed = change_study(make_study(), ["--config.eval.start=zero", "eval.parts=('swap',)"], [4])
    runs = make_runs(changed, Path("out"))
    assert [run.seed for run in runs] == [4, 4]
    assert runs[0].overrides["eval.start"] == "zero" and runs[0].overrides["train.num_steps"] == 2
    assert "--config.eval.parts=('swap',)" in runs[0].command("eval")
    for setting, match in (
        ("model.dynamic_dim=3", "variant 'narrow' of the study sets model.dynamic_dim itself"),
        ("train.steps=3", "unknown key of config.train: 'steps'"),
        ("train.num_steps", "must be KEY=VALUE"),
    ):
        with pytest.raises(ValueError, match=match):
            change_study(make_study(), [setting], None)


def test_a_variant_may_have_a_config_of_its_own(tmp_path):
    study = make_study(variants={"own": {}, "other": {"config": f"{CONFIG}:reference"}})
    launcher = Fake()
    command.conduct(study, tmp_path, launcher=launcher)
    assert [c["config"] for c in launcher.calls] == [CONFIG] * 2 + [f"{CONFIG}:reference"] * 2


def test_slots_divide_the_cores_or_take_a_device_each():
    assert make_slots() == [Slot({})]
    cores = os.sched_getaffinity(0)
    crowd = make_slots(len(cores) + 1)
    assert len(crowd) == len(cores) + 1 and not any(slot.cores for slot in crowd)
    assert crowd[0].environment["NPROC"] == "1"  # each with one thread, on any core
    two = make_slots(2)
    assert two[0].environment["JAX_PLATFORMS"] == "cpu"
    if len(cores) > 1:
        assert two[0].cores | two[1].cores == cores and not two[0].cores & two[1].cores
    assert [s.environment["CUDA_VISIBLE_DEVICES"] for s in make_slots(1, ["0", "3"])] == ["0", "3"]
    with pytest.raises(ValueError, match="--jobs is 0"):
        make_slots(0)
    with pytest.raises(ValueError, match="give one of the two"):
        make_slots(2, ["0"])


def test_a_command_gets_its_variables_and_cores_and_writes_its_log(tmp_path):
    core = min(os.sched_getaffinity(0))
    ended = Launcher()(
        # Cores are set just after the start.
        ["sh", "-c", "sleep 0.3; echo $A; grep Cpus_allowed_list /proc/$$/status; exit 5"],
        tmp_path / "log.txt",
        Slot({"A": "one"}, frozenset([core])),
    )
    assert ended.status == 5 and 0.3 <= ended.seconds < 30 and ended.cpu_seconds < 5
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert lines[0].startswith("$ sh -c") and lines[1] == "one"
    assert lines[2].split() == ["Cpus_allowed_list:", str(core)]


@pytest.fixture
def interruptible():
    """SIGINT interrupts, also where a shell runs the tests in the background and ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_stopping_ends_the_commands_and_starts_no_more(tmp_path):
    class Sleeper(Launcher):
        def __call__(self, command, log, slot):
            return super().__call__(["sleep", "100"], log, slot)

    launcher, began = Sleeper(), time.perf_counter()
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        command.conduct(make_study(), tmp_path, launcher=launcher)
    assert time.perf_counter() - began < 50
    assert "0 of 4 runs" in (tmp_path / "table.md").read_text()
    with pytest.raises(KeyboardInterrupt):
        launcher([], tmp_path / "log.txt", Slot({}))


class SwallowsInterrupts:
    """Its end waits for a signal, whose exception Python drops there."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_during_garbage_collection_stops_too():
    launcher = Launcher()
    before = signal.getsignal(signal.SIGINT)
    with launcher.stopping_on_signals():
        SwallowsInterrupts()
    assert launcher.stopped and signal.getsignal(signal.SIGINT) is before


def test_a_command_is_told_once_to_end(tmp_path):
    launcher, ended = Launcher(), []
    words = "trap 'echo told' TERM; echo ready; for i in 1 2 3 4 5 6 7 8; do sleep 0.1; done"
    log = tmp_path / "log.txt"
    thread = threading.Thread(
        target=lambda: ended.append(launcher(["sh", "-c", words], log, Slot({})))
    )
    thread.start()
    while not log.exists() or "ready" not in log.read_text().splitlines():
        time.sleep(0.01)
    for _ in range(3):
        launcher.stop()
        time.sleep(0.1)
    thread.join()
    assert ended[0].status == 0 and log.read_text().splitlines().count("told") == 1


def test_an_ignored_ctrl_c_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Launcher().stopping_on_signals():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_mistakes_on_the_command_line_end_in_one_line(tmp_path, capsys):
    file = tmp_path / "study.py"
    for text, match in (
        (None, "does not exist; see the folder studies/"),
        ("get_study = 1", "cannot be read"),
        ("def get_study(): return 1", "which is no Study"),
    ):
        if text:
            file.write_text(text)
        assert command.main([f"--study={file}", f"--out={tmp_path / 'out'}"]) == 2
        error = capsys.readouterr().err
        assert match in error and len(error.splitlines()) == 1
    (tmp_path / "study.txt").write_text("")
    assert command.main([f"--study={tmp_path / 'study.txt'}", f"--out={tmp_path / 'out'}"]) == 2
    assert "its name must end in .py. It needs a function" in capsys.readouterr().err
    known = "--study=studies/recurrence.py"
    assert command.main([known, f"--out={tmp_path / 'out'}", "--seeds=a"]) == 2
    assert "--seeds=a: give numbers" in capsys.readouterr().err


STUDY_FILE = """
from diffsda_jax.study import Metric, Study

def get_study():
    return Study(
        title="Tiny", question="Does it run?", config="configs/japanese_vowels.py",
        common={
            "data.length": 4, "model.static_dim": 2, "model.hidden_dim": 4, "model.width": 2,
            "model.encoder_width": 2, "train.num_steps": 2, "train.batch_size": 8,
            "eval.parts": ("verification",), "eval.num_clips": 40, "eval.num_swaps": 2,
            "eval.num_steps": 2,
        },
        variants={"corrected": {"eval.form": "corrected"}, "reference": {"eval.form": "reference"}},
        metrics=[Metric("verification/gap_points", "gap", "high")],
        seeds=(0,),
    )
"""


@pytest.mark.slow
def test_a_real_study_from_the_command_line(tmp_path, capsys):
    file = tmp_path / "study.py"
    file.write_text(STUDY_FILE)
    arguments = [f"--study={file}", f"--out={tmp_path / 'out'}"]
    assert load_study(file).title == "Tiny" and command.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "| corrected | 1 |" in printed and "2 of 2 runs" in printed
    record = json.loads((tmp_path / "out" / "study.json").read_text())
    assert [list(run["seconds"]) for run in record["runs"]] == [["train"], ["eval"]]
    assert command.main(arguments) == 0 and "done before" in capsys.readouterr().out
