"""The config of a run, read from its workdir."""

import json
from pathlib import Path

import pytest
from absl.testing import flagsaver

from diffsda_jax import config as configuration
from diffsda_jax import main, saved_config
from diffsda_jax.command_line import flag_value

ROOT = Path(__file__).parents[1]
CONFIGS = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "configs").glob("*.py"))]
CONFIGS += ["configs/video_folder.py:small", "configs/video_folder.py:latents"]
CONFIGS += ["configs/csv.py:long", "configs/librispeech.py:espeak", "configs/timit.py:reference"]


def save(config, workdir):
    workdir.mkdir(exist_ok=True)
    record = {"config": configuration.to_json(config), "data": "0"}
    (workdir / saved_config.CONFIG_FILE).write_text(json.dumps(record))
    return str(workdir)


@pytest.mark.parametrize("path", CONFIGS)
def test_every_config_comes_back(path, tmp_path):
    config = configuration.load_config(str(path))
    found = saved_config.get_config(save(config, tmp_path))
    configuration.check_config(found)
    assert configuration.to_json(found) == configuration.to_json(config)
    assert found.to_dict() == config.to_dict()  # tuples and all
    config.data.length += 1
    found.data.length += 1
    assert found.to_dict() == config.to_dict()
    with pytest.raises(AttributeError):
        found.model.no_option = 1


def test_options_that_came_later_have_their_defaults(tmp_path):
    config = configuration.load_config("configs/digits.py")
    save(config, tmp_path)
    file = tmp_path / saved_config.CONFIG_FILE
    record = json.loads(file.read_text())
    del record["config"]["report"], record["config"]["eval"]["form"]
    file.write_text(json.dumps(record))
    found = saved_config.get_config(str(tmp_path))
    defaults = configuration.default_config()
    assert (found.report, found.eval.form) == (defaults.report, defaults.eval.form)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"config": 1}', '{"config": {"source": 1}, "data": ""}']
)
def test_a_damaged_file_is_named(text, tmp_path, capsys):
    (tmp_path / saved_config.CONFIG_FILE).write_text(text)
    with pytest.raises(SystemExit):
        main.parse_flags(["main", f"--workdir={tmp_path}", "--mode=eval"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"diffsda_jax: error: {tmp_path / 'config.json'} was not written by")


@pytest.mark.filterwarnings("ignore:the load_module")  # ml_collections loads config files so
def test_the_command_line_takes_the_workdirs_config(tmp_path, monkeypatch):
    config = configuration.load_config("configs/japanese_vowels.py")
    config.model.static_dim = 5
    workdir = save(config, tmp_path / "run")
    words = ["main", f"--workdir={workdir}", "--mode=plan", "--config.train.num_steps=7"]
    monkeypatch.setattr("sys.argv", words)  # where ml_collections looks for overrides
    with flagsaver.flagsaver():
        main.parse_flags(words)
        assert main.CONFIG.value.model.static_dim == 5
        assert main.CONFIG.value.train.num_steps == 7
        assert main.CONFIG.value.source.name == config.source.name


def test_only_a_run_has_a_config_and_zero_shot_needs_another(tmp_path):
    run = save(configuration.load_config("configs/digits.py"), tmp_path / "run")
    words = ["main", f"--workdir={tmp_path / 'new'}"]
    assert main.workdir_with_config(words) is None
    assert main.workdir_with_config([*words, "--workdir", run]) == run
    assert main.workdir_with_config([*words, f"--workdir={run}", "--mode=zero_shot"]) is None


def test_a_missing_config_is_said_as_it_is_missed(tmp_path, capsys):
    for mode, text in (
        ("report", f"workdir {tmp_path} has no config.json of a training"),
        ("train", "--config is missing; give a file of configs/"),
        ("zero_shot", "--config is missing"),
    ):
        with flagsaver.flagsaver(), pytest.raises(SystemExit):
            main.parse_flags(["main", f"--workdir={tmp_path}", f"--mode={mode}"])
            main.main(["main"])
        assert capsys.readouterr().err.count(text) == 1


@pytest.mark.parametrize(
    ("words", "value"),
    [(["--a", "x"], "x"), (["-a=x", "b"], "x"), (["--a=x", "--a=y=z"], "y=z"), (["--ab=x"], None)],
)
def test_the_last_value_of_a_flag_is_taken(words, value):
    assert flag_value(words, "a") == value
