"""Options set to odd values: they work, or the command ends in one sentence that names them."""

import pytest
import tiny_jobs
from commands import Command
from mutations import mutate_config

from diffsda_jax import config as configuration

pytestmark = pytest.mark.slow
LIMIT_SECONDS = 240


def test_odd_value(mutated_config, tmp_path):
    config = configuration.load_config("configs/japanese_vowels.py")
    option, value = mutate_config(config, mutated_config)
    others = {name: known for name, known in tiny_jobs.SERIES.items() if name != option}
    words = tiny_jobs.words("japanese_vowels", tmp_path / "run", others | {option: value}, "plan")
    outcome = Command(words, tmp_path / "log").wait(LIMIT_SECONDS)
    if outcome.status != 0:
        assert option.rpartition(".")[2] in outcome.error(), (option, value, outcome.text)
