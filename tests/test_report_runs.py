"""``--mode=report`` on tiny untrained models and hand-made logs; a browser in the slow test."""

import json
import os
import shutil
from html.parser import HTMLParser
from pathlib import Path

import jax
import numpy as np
import pytest

from diffsda_jax import config as configuration
from diffsda_jax import experiment as experiments
from diffsda_jax import main, report_runs, runs
from diffsda_jax.audio.wav import encode_wav
from diffsda_jax.evals.pictures import write_png
from diffsda_jax.evals.report import write_results
from diffsda_jax.model import init_variables
from diffsda_jax.train import checkpoint

ROOT = Path(__file__).parents[1]
VOID = {"meta", "link", "img", "input", "br"}
SHOWN = {"img", "video", "audio", "svg"}
METRICS = {
    "swap/static_kept_percent": 90.0,
    "swap/static_kept_chance_percent": 11.1,
    "verification/static_eer_percent": 8.5,
    "verification/dynamic_eer_percent": float("nan"),
}


def tiny(name, **report):
    config = runs.shrink(configuration.load_config(f"configs/{name}.py"))
    config.model.channel_mults, config.model.attention_levels = (1,), ()  # of video, quicker
    config.eval.update(num_clips=8, num_train_clips=16)
    config.report.update(num_codes=16, num_clips=4, num_components=1, num_places=3, **report)
    return config


def save_model(config, workdir):
    experiment = experiments.build(config)
    variables = init_variables(experiment.spec, jax.random.key(0))
    checkpoint.save_converted(workdir, variables, experiment.meta())


def write_log(workdir):
    (workdir / "logs").mkdir()
    lines = [
        {"step": step, "time": 1.0, "train/loss": 2.0 / step, "train/steps_per_second": 4.0}
        for step in (2, 4, 6, 8)
    ]
    text = "\n".join(json.dumps(line) for line in lines)
    (workdir / "logs" / "metrics.jsonl").write_text(f'{text}\n{{"step": 9, "tr')


def write_evaluation(workdir, step=8):
    folder = workdir / "eval" / f"{step:08d}"
    write_results(METRICS, folder, settings={"num_swaps": 7}, notes=["the part x was skipped"])
    write_png(np.zeros((20, 90, 3), np.uint8), folder / "swap_series.png")
    (folder / "sounds").mkdir()
    for role in ("voice", "words", "result", "reconstruction"):
        sound = encode_wav(np.sin(np.arange(2_000) / 9), 8_000)
        (folder / "sounds" / f"swap_0_{role}.wav").write_bytes(sound)
    return folder


@pytest.fixture(scope="module", autouse=True)
def one_shape():
    """All that is decoded comes in batches of three: one compiled program serves all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report_runs, "_BATCH_SIZE", 3)
        yield


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    """A report on vowels, with a log, an evaluation with sounds, and a table of a study."""
    workdir = tmp_path_factory.mktemp("series")
    config = tiny("japanese_vowels")
    save_model(config, workdir)
    write_log(workdir)
    write_evaluation(workdir)
    (workdir / "table.md").write_text("# Seeds\n| run | gap |\n|---|---|\n| a <b> | 3 |\n")
    return workdir, config, report_runs.run_report(config, workdir, "configs/a b.py")


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """A report on digits, of a checkpoint alone."""
    workdir = tmp_path_factory.mktemp("video")
    config = tiny("digits")
    config.model.update(channel_mults=(1,), attention_levels=())  # half as much to trace
    save_model(config, workdir)
    return workdir, config, report_runs.run_report(config, workdir)


class Page(HTMLParser):
    """Checks the nesting, and keeps tags, texts of some, and what each figure shows."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.texts, self.open, self.figures = [], {}, [], []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "figure":
            self.figures.append([])
        if tag in SHOWN and "figure" in self.open:
            self.figures[-1].append(tag)
        if tag not in VOID and not self.get_starttag_text().endswith("/>"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data):
        for tag in set(self.open):
            self.texts.setdefault(tag, []).append(data.strip())

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    def text(self, tag):
        return " ".join(text for text in self.texts.get(tag, []) if text)


@pytest.mark.parametrize("run", ["series", "video"])
def test_the_page_stands_alone(run, request):
    path = request.getfixturevalue(run)[2]
    page = Page(path)
    assert path.stat().st_size < 25e6
    for tag, attributes in page.tags:
        for name in ("src", "href", "poster", "srcset", "data", "action"):
            assert attributes.get(name, "#").startswith(("data:", "#")), (tag, name)
    style, script = page.text("style"), page.text("script")
    assert "url(" not in style and "@import" not in style and "prefers-color-scheme" in style
    assert not any(word in script for word in ("fetch(", "import(", "XMLHttpRequest"))
    assert not any(name in ("link", "iframe") and "data:" not in a["href"] for name, a in page.tags)


@pytest.mark.parametrize("run", ["series", "video"])
def test_the_page_can_be_read_by_those_who_do_not_see_it(run, request):
    page = Page(request.getfixturevalue(run)[2])
    assert (
        page.of("html")[0]["lang"] == "en" and "width=device-width" in page.of("meta")[1]["content"]
    )
    assert all(image["alt"] for image in page.of("img"))
    for tag in ("video", "audio", "svg", "nav"):
        assert all(found["aria-label"] for found in page.of(tag)), tag
    levels = [int(tag[1]) for tag, _ in page.tags if tag in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1 and levels.count(1) == 1 and max(np.diff(levels)) <= 1
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(names) == len(set(names))
    assert {link["href"][1:] for link in page.of("a")} <= set(names)


def test_no_figure_is_empty(series, video):
    for _, _, path in (series, video):
        figures = Page(path).figures
        assert len(figures) > 4 and all(figures)


def test_a_page_on_series_shows_what_the_run_left(series):
    page = Page(series[2])
    assert "Japanese vowels" in page.text("h1")
    assert "8.50 % static EER" in page.text("li") and "dynamic EER" not in page.text("li")
    assert (
        "The paper (arXiv 2510.05717) gives no numbers on the data 'japanese_vowels'"
        in page.text("body")
    )
    assert "the part x was skipped" in page.text("body") and "7 swaps" in page.text("caption")
    assert "from 1 to 0.25 (steps 2 to 8)" in page.text("section")
    assert len(page.of("audio")) == 4 and "a <b>" in page.text("table")
    assert [box["data-name"] for box in page.of("input") if box["type"] == "checkbox"][:12] == [
        f"lpcc {number}" for number in range(1, 13)
    ]
    config = json.loads(page.text("details").partition("Every option of the config")[2])
    assert config["source"]["name"] == "japanese_vowels"
    assert "'--config=configs/a b.py'" in page.text("pre") and "--mode=explore" in page.text("pre")
    assert f"jax {jax.__version__} {jax.__version__}" in page.text("table")


def test_charts_hold_all_of_a_series(series):
    """Four swaps and the two worst kinds, with twelve lines in each chart; and two curves."""
    page = Page(series[2])
    lines = [line["data-name"] for line in page.of("polyline")]
    charts = 4 * 3 + 3 * 3 + 3 * 2 + 2 * 3  # swaps, worst swaps, worst reconstructions, sliders
    assert lines.count("lpcc 1") == lines.count("lpcc 12") == charts
    assert lines.count("loss") == lines.count("steps per second") == 1


def test_sliders_begin_in_the_middle(series, video):
    for _, _, path in (series, video):
        page = Page(path)
        ranges = [box for box in page.of("input") if box["type"] == "range"]
        assert [(box["max"], box["value"]) for box in ranges] == [("2", "1")] * 2
        titles = [a["data-title"] for _, a in page.tags if a.get("class") == "frame"]
        assert titles[1] == "not moved" and len(titles) == 6


def test_a_checkpoint_alone_gives_a_page_that_says_what_is_missing(video):
    page = Page(video[2])
    assert "digits" in page.text("h1").lower() and not page.of("audio")
    moving = page.of("video") or page.of("img")
    assert "Grid of swaps" in (moving[0].get("aria-label") or moving[0]["alt"])
    commands = page.text("pre")
    assert f"--config=CONFIG --workdir={video[0]} --mode=eval" in commands
    assert "has not been evaluated yet" in page.text("body")
    assert "There is no log of a training" in page.text("body")
    assert "Test clips above what their factors give" in page.text("body")  # drawn for the page
    assert [a for _, a in page.tags if a.get("class") == "missing"]


def test_a_log_alone_gives_a_page(tmp_path):
    write_log(tmp_path)
    path = report_runs.run_report(tiny("japanese_vowels"), tmp_path)
    page = Page(path)
    assert "No examples were decoded, as" in page.text("body") and "--mode=report" in page.text(
        "pre"
    )
    assert "It was trained for 8 steps" in page.text("header") and "loss" in page.text("section")


def test_what_is_too_heavy_is_left_out_and_named(series, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(series[0], workdir)
    folder = next((workdir / "eval").iterdir()) / "sounds"
    (folder / "swap_1_voice.wav").write_bytes(bytes(3_000_000))
    config = tiny("japanese_vowels", compute="never", max_megabytes=4.0)
    page = Page(report_runs.run_report(config, workdir))
    assert len(page.source) < 4e6 and len(page.of("audio")) == 4
    assert "Left out to keep this page light: Swap 2: voice from (3.0 MB)" in page.text("footer")
    assert "config.report.compute is 'never'" in page.text("body")
    with_all = report_runs.run_report(tiny("japanese_vowels", compute="never"), workdir)
    assert len(Page(with_all).of("audio")) == 5


def test_components_that_were_explored_have_their_names(tmp_path):
    folder = tmp_path / "explore" / "00000000"
    write_results({"a/b": 1.0}, folder)
    arrays = {}
    for factor, size in (("static", 4), ("dynamic", 2)):
        ones = {name: np.ones(size) for name in ("mean", "std")}
        parts = ones | {"directions": np.eye(size)[:1], "spread": np.ones(1), "share": np.ones(1)}
        arrays |= {f"{factor}_{name}": value for name, value in parts.items()}
        arrays[f"{factor}_names"] = np.array([f"{factor[0]}1: something"])
    np.savez(folder / "components.npz", **arrays)
    (tmp_path / "logs").mkdir()
    records = report_runs.read_records(tmp_path)
    known = report_runs._known_components(records, 0)
    assert report_runs._known_components(records, 8) == []  # of another model
    assert [(one.factor, one.level, titles) for one, titles in known] == [
        ("static", "sequence", ["s1: something"]),
        ("dynamic", "step", ["d1: something"]),
    ]
    values = np.array([[1.0, 1.0, 1.0, 3.0]])
    np.testing.assert_allclose(known[0][0].coordinates(values), [[0.0]])


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("num_places", 4, "report.num_places is 4; use an odd number"),
        ("num_clips", 0, "report.num_clips is 0; allowed: 1 or more"),
        ("max_megabytes", 1.0, "report.max_megabytes is 1.0; allowed: 4"),
        ("compute", "often", "report.compute: unknown value 'often'; allowed are auto, never"),
    ],
)
def test_options_are_checked_before_anything_is_read(tmp_path, option, value, message):
    config = tiny("japanese_vowels")
    config.report[option] = value
    with pytest.raises(ValueError, match=message):
        report_runs.run_report(config, tmp_path)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run .*train one"):
        report_runs.run_report(tiny("japanese_vowels"), tmp_path)


def test_a_config_of_another_run_is_refused_with_a_way_out(series):
    config = tiny("japanese_vowels")
    config.model.dynamic_dim = 3
    with pytest.raises(ValueError, match=r"architecture.* --config.report.compute=never"):
        report_runs.run_report(config, series[0])


def test_the_command_prints_where_the_page_is(tmp_path, capsys, monkeypatch):
    write_log(tmp_path)
    monkeypatch.setattr("sys.argv", ["main", "--config", "configs/x.py"])
    config = tiny("japanese_vowels", compute="never")
    main.run_mode("report", config, str(tmp_path))
    assert capsys.readouterr().out.splitlines()[-1] == f"report: {tmp_path / 'report.html'}"
    assert "--config=configs/x.py" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("name", ["demo", "speech_demo"])
def test_the_demos_end_with_the_report(name):
    last = (ROOT / "launch" / f"{name}.sh").read_text().splitlines()[-1]
    assert last == '"$PYTHON" -m diffsda_jax.main "${config[@]}" --mode=report'


def find_browser():
    """A Chromium: CHROMIUM names it, or it is on the path, or playwright installed one."""
    named = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    return {"executable_path": named} if named else {}


@pytest.mark.slow
@pytest.mark.parametrize("run", ["series", "video"])
def test_a_browser_shows_the_page(run, request, tmp_path):
    """At the widths of a phone and a screen, light and dark; the pictures go to REPORT_SHOTS."""
    api = pytest.importorskip("playwright.sync_api")
    path = request.getfixturevalue(run)[2]
    shots = Path(os.environ.get("REPORT_SHOTS", tmp_path))
    with api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(args=["--no-sandbox"], **find_browser())
        except api.Error as error:
            pytest.skip(f"no Chromium (apt install chromium, or playwright install): {error}")
        for width in (390, 1440):
            for scheme in ("light", "dark"):
                tab = browser.new_page(
                    viewport={"width": width, "height": 900}, color_scheme=scheme
                )
                problems = []
                tab.on("console", lambda m, p=problems: m.type == "error" and p.append(m.text))
                tab.on("pageerror", lambda e, p=problems: p.append(str(e)))
                tab.on("request", lambda r, p=problems: p.append(r.url[:80]))
                tab.goto(path.as_uri())
                tab.wait_for_load_state("load")
                check_layout(tab, width)
                check_motion(tab)
                if width == 1440:
                    check_controls(tab, run)
                tab.screenshot(path=shots / f"{run}_{width}_{scheme}.png", full_page=True)
                assert [one for one in problems if not one.startswith(("file:", "data:"))] == []
                tab.close()
        browser.close()


def check_layout(tab, width):
    """Nothing is wider than the screen but what scrolls in a box of its own; no broken picture."""
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    wide = tab.evaluate(
        "[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, pre, svg') &&"
        " e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
    )
    assert wide == []
    assert tab.evaluate("[...document.images].filter(i => !i.naturalWidth).length") == 0
    contrast = tab.evaluate(
        "(() => { const s = getComputedStyle(document.body);"
        " const f = (c) => c.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0);"
        " return Math.abs(f(s.color) - f(s.backgroundColor)); })()"
    )
    assert contrast > 400  # of 765: dark on light, or light on dark


def check_motion(tab):
    """Videos can be decoded (where this Chromium knows H.264), and one button stops them all."""
    videos = tab.locator("video")
    if not videos.count():
        return
    tab.wait_for_function(
        "[...document.querySelectorAll('video')].every(v => v.readyState > 1 || v.error)"
    )
    assert tab.evaluate("[...document.querySelectorAll('video')].filter(v => v.error).length") == 0
    assert all(video.get_attribute("poster") for video in videos.all())
    tab.click("#motion")
    assert tab.evaluate("[...document.querySelectorAll('video')].every(v => v.paused)")


def check_controls(tab, run):
    """A slider shows another picture; a chart can be read off; a legend hides a line."""
    slider = tab.locator(".slider").first
    assert slider.locator(".frame:visible").get_attribute("data-title") == "not moved"
    slider.locator("input").focus()
    tab.keyboard.press("ArrowRight")
    assert slider.locator(".frame:visible").get_attribute("data-title").startswith("+")
    assert slider.locator("output").inner_text().startswith("+")
    if run == "series":
        chart = tab.locator(".chart").first
        chart.hover(position={"x": 150, "y": 80})
        assert "lpcc" in chart.locator(".readout").text_content()
        chart.focus()
        tab.keyboard.press("ArrowRight")
        assert " at " in chart.locator(".readout").text_content()
        box = tab.locator(".legend input").first
        before = chart.locator(".line:visible").count()
        box.uncheck()
        assert chart.locator(".line:visible").count() == before - 1
        box.check()
