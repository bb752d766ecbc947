import pytest
from ml_collections import ConfigDict

from diffsda_jax import config as configuration


@pytest.fixture
def config():
    return configuration.load_config("configs/japanese_vowels.py")


def test_default_config_is_locked():
    with pytest.raises(AttributeError, match="learning_rate"):
        configuration.default_config().optimizer.learnig_rate = 1.0


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("--config.model.static_dm=3", "config.model: 'static_dm'. Did you mean 'static_dim'"),
        ("--config.optimiser.learning_rate=1", "'optimiser'. Did you mean 'optimizer'"),
        ("--config.seed.low=1", "config.seed is an option"),
    ],
)
def test_unknown_override_names_the_nearest_key(config, override, match):
    with pytest.raises(ValueError, match=match):
        configuration.check_overrides(config, ["main", override])
    configuration.check_overrides(config, ["main", "--config.model.static_dim=3", "--workdir=x"])


def test_unknown_and_missing_keys_are_named(config):
    with config.unlocked():
        config.model.widht = 3
        with pytest.raises(ValueError, match="config.model: 'widht'. Did you mean 'width'"):
            configuration.check_config(config)
        del config.model["widht"]
        del config.model["width"]
    with pytest.raises(ValueError, match="config.model.width is missing"):
        configuration.check_config(config)


def test_wrong_kind_of_value_is_named(config):
    values = ConfigDict({**config.to_dict(), "seed": "zero"})
    with pytest.raises(ValueError, match="config.seed is 'zero' .str.*must be int"):
        configuration.check_config(values)


def test_unknown_source_names_the_nearest():
    with pytest.raises(ValueError, match="'digit'. Did you mean 'digits'"):
        configuration.source_config("digit")
    with pytest.raises(ValueError, match="'canvass'. Did you mean 'canvas'"):
        configuration.source_config("digits", canvass=3)


def test_options_of_a_source_are_all_there_and_can_be_set_on_the_command_line():
    options = configuration.source_config("csv", path="x.csv").options
    assert options.path == "x.csv" and options.stride is None and options.layout == "wide"
    options.stride = 4
    with pytest.raises(TypeError):
        options.stride = "four"


def test_missing_config_file():
    with pytest.raises(FileNotFoundError, match="configs/nothing.py does not exist"):
        configuration.load_config("configs/nothing.py")


def test_file_without_get_config(tmp_path):
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(ValueError, match="empty.py cannot be read.*needs a function get_config"):
        configuration.load_config(str(tmp_path / "empty.py"))
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"must end in \.py\. It needs a function get_config"):
        configuration.load_config(str(tmp_path / "notes.txt"))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("config.model.widht = 3", "widht.*Did you mean .width"),
        ("config.model.width = 'three'", "three|int"),
        ("return config)", "unmatched"),
        ("import nothing_like_this", "nothing_like_this"),
    ],
)
def test_a_mistake_in_a_config_file_is_one_line(tmp_path, text, match):
    file = tmp_path / "bad.py"
    file.write_text(
        "from diffsda_jax.config import default_config\n"
        f"def get_config():\n    config = default_config()\n    {text}\n    return config\n"
    )
    with pytest.raises(ValueError, match=match) as caught:
        configuration.load_config(str(file))
    assert "bad.py" in str(caught.value) and "\n" not in str(caught.value)


def test_a_config_that_is_no_python_file_is_named(tmp_path):
    file = tmp_path / "config.txt"
    file.write_text("def get_config(): ...")
    with pytest.raises(ValueError, match="config.txt is no Python file: its name must end in .py"):
        configuration.load_config(str(file))


def test_unknown_variant_is_named():
    with pytest.raises(ValueError, match="digits.py:foo cannot be read.*'foo'.*16, 32"):
        configuration.load_config("configs/digits.py:foo")


def test_argument_after_the_colon():
    assert configuration.load_config("configs/digits.py:32").source.options.canvas == 32


def test_differences_name_every_option(config):
    other = configuration.load_config("configs/japanese_vowels.py")
    old, new = configuration.to_json(config), configuration.to_json(other)
    assert configuration.differences(old, new) == []
    new["model"]["width"], new["seed"] = 7, 1
    assert configuration.differences(old, new) == [
        "config.model.width was 32 and is now 7",
        "config.seed was 0 and is now 1",
    ]
