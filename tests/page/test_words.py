import math
from pathlib import Path

import numpy as np

from diffsda_jax import config as configuration
from diffsda_jax.page.published import METHODS, PUBLISHED, published_for
from diffsda_jax.page.records import Curve, Evaluation, Records
from diffsda_jax.page.run_sections import numbers_section
from diffsda_jax.page.words import Facts, lead_of, tables_of, tiles_of


def facts(**changes):
    config = configuration.to_json(configuration.load_config("configs/timit.py"))
    return Facts(**{"config": config, "source": "timit", "kind": "audio"} | changes)


def records(curves=None, seconds=math.nan):
    return Records(Path("run"), {}, curves or {}, seconds, [], [])


def evaluation(**metrics):
    named = {name.replace("__", "/"): value for name, value in metrics.items()}
    return Evaluation(Path("eval"), 10, named, "corrected", {"num_swaps": 3}, ["a part skipped"])


def test_the_lead_says_what_was_trained():
    text = lead_of(
        facts(step=2_000, num_parameters=1_690_000, num_sequences={"train": 4000, "test": 192}),
        records(seconds=3_700.0),
    )
    assert "speech of the data set 'timit'" in text and "s of 32 numbers" in text
    assert "2,000 steps of 128 sequences (256,000), in 62 min." in text
    assert "1.69 million parameters" in text
    assert "4,000 sequences for training and 192 sequences for testing" in text


def test_the_lead_of_a_run_that_is_not_finished_takes_the_log():
    curve = Curve(np.array([5.0, 300.0]), np.array([2.0, 1.0]))
    assert "for 300 steps of" in lead_of(facts(), records({"train/loss": curve}, 42.0))
    assert "in 42 s" in lead_of(facts(), records({"train/loss": curve}, 42.0))
    assert "has not been trained yet" in lead_of(facts(), records())
    assert "in 2 h 5 min" in lead_of(facts(step=1), records(seconds=7_500.0))


def test_tiles_are_numbers_that_were_measured():
    assert tiles_of(None) == []
    found = tiles_of(
        evaluation(
            verification__static_eer_percent=8.5,
            verification__static_eer_chance_percent=50.0,
            faces__aed=math.nan,
            probes__s_to_static_percent=97.0,
        )
    )
    assert [(tile.value, tile.title) for tile in found] == [("8.50 %", "static EER")]
    assert found[0].hint == "low is good, chance 50.00"


def test_published_numbers_stand_beside_those_of_the_run():
    section = numbers_section(facts(), evaluation(verification__static_eer_percent=5.0), "eval it")
    table, note, metrics, skipped = section.blocks
    assert table.header[-4:] == ("this run", *METHODS)
    assert table.rows[0] == ("static EER", "%", "lower", "5.00", "4.43", "3.5", "3.41")
    assert table.rows[1][3] == "not measured"
    assert "corrected form" in note.text and "3 swaps" in metrics.caption
    assert metrics.rows[1] == ("static eer", "5.00 %", "") and "a part skipped" in skipped.text


def test_a_run_that_was_not_evaluated_says_what_to_run():
    table, missing = numbers_section(facts(), None, "eval it").blocks
    assert {row[3] for row in table.rows} == {"not measured"}
    assert missing.missing and missing.command == "eval it"
    (none, _) = numbers_section(facts(source="digits"), None, "eval it").blocks
    assert "no numbers on the data 'digits'" in none.text


def test_published_gaps_are_about_the_differences_of_the_published_rates():
    for source in ("timit", "librispeech"):
        static, dynamic, gap = (line.values for line in published_for(source))
        np.testing.assert_allclose(np.subtract(dynamic, static), gap, atol=0.3)
    assert all(len(line.values) == len(METHODS) for lines in PUBLISHED.values() for line in lines)
    assert published_for("digits") == []


def test_tables_are_found_in_markdown():
    text = "# Study\n\nwhy\n\n| run | **gap** |\n|---|---:|\n| `a` | **3** |\n\n"
    text += "## More\n| x |\n|---|\n"
    first, second = tables_of(text, "Study")
    assert first.header == ["run", "gap"] and first.rows == [["a", "3"]]
    assert first.caption == "Study: Study" and second.caption == "Study: More" and not second.rows
