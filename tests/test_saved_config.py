"""The config of a run, read from its workdir."""

import json
from pathlib import Path

import pytest
from absl.testing import flagsaver

from diffsda_jax import config as configuration
from diffsda_jax import main, saved_config

CONFIGS = sorted(Path("configs").glob("*.py"))


def save(config, workdir):
    workdir.mkdir(exist_ok=True)
    record = {"config": configuration.to_json(config), "data": "0"}
    (workdir / saved_config.CONFIG_FILE).write_text(json.dumps(record))
    return str(workdir)


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_every_config_comes_back(path, tmp_path):
    config = configuration.load_config(str(path))
    found = saved_config.get_config(save(config, tmp_path))
    configuration.check_config(found)
    assert configuration.to_json(found) == configuration.to_json(config)
    assert found.to_dict() == config.to_dict()  # tuples and all
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


@pytest.mark.parametrize("text", ["", "[]", '{"config": 1}', '{"config": {"source": 1}}'])
def test_a_damaged_file_is_named(text, tmp_path):
    (tmp_path / saved_config.CONFIG_FILE).write_text(text)
    with pytest.raises(ValueError, match=r"config.json was not written by this program"):
        saved_config.get_config(str(tmp_path))


@pytest.mark.filterwarnings("ignore:the load_module")  # ml_collections loads config files so
def test_the_command_line_takes_the_workdirs_config(tmp_path, monkeypatch):
    config = configuration.load_config("configs/japanese_vowels.py")
    config.model.static_dim = 5
    workdir = save(config, tmp_path / "run")
    words = ["main", f"--workdir={workdir}", "--mode=plan", "--config.train.num_steps=7"]
    given = [*words, "--config=configs/digits.py"]
    assert saved_config.add_saved(given) == given
    new = ["main", "--workdir", str(tmp_path / "new")]
    assert saved_config.add_saved(new) == new
    monkeypatch.setattr("sys.argv", words)  # where ml_collections looks for overrides
    with flagsaver.flagsaver():
        main.parse_flags(words)
        assert main.CONFIG.value.model.static_dim == 5
        assert main.CONFIG.value.train.num_steps == 7
        assert main.CONFIG.value.source.name == config.source.name
