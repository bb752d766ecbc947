from diffsda_jax import config as configuration
from diffsda_jax import plan, runs


def test_plan_says_what_a_run_would_be(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = runs.shrink(configuration.default_config())
    config.source = configuration.source_config("japanese_vowels")
    config.data.length_mode = "resample"
    text = plan.make_plan(config)
    assert '"static_dim": 4' in text and "encoder/recurrence/lstm/kernel_hidden" in text
    assert "japanese_vowels/train: 270" in text and "33.8 steps an epoch" in text
    assert "8 x cpu" in text
    facts = dict(line.split("  ", 1) for line in text.splitlines()[-4:])
    assert float(facts["FLOPs of a device and step"].split()[0]) > 0
    assert int(facts["peak memory of a device"].split()[0]) > 0
    assert not list(tmp_path.iterdir())
