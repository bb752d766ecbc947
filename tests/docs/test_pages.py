"""What the pages name exists: links, anchors, options, modes, commands and files."""

import inspect
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from pages import NOTEBOOKS, PAGES, ROOT, anchors, code_spans, commands, prose, without_code

import diffsda_jax
from diffsda_jax import config as configuration
from diffsda_jax import infer, main
from diffsda_jax.command_line import flag_value
from diffsda_jax.data.sources import SOURCES

SECTIONS = configuration.default_config().to_dict()
EXAMPLES = {
    "pendulums.py",
    "conv_front.py",
    "my.py",
    "file.py",
    "FILE.py",
    "X.py",
    "metrics.jsonl",
}  # of a user, or of a run
NO_OPTIONS = {"model.py", "prior.py", "model.normalizer.apply", "report.html"}  # begin alike
IDS = [page.relative_to(ROOT).as_posix() for page in PAGES]
EACH_PAGE = pytest.mark.parametrize("page", PAGES, ids=IDS)


def test_the_readme_is_a_front_door():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 250 and lines[2].startswith("![")


@EACH_PAGE
def test_links_and_anchors_resolve(page):
    check_links(page, without_code(page), re.findall(r"\]\(([^)\s]+)\)", without_code(page)))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_links_of_notebooks_resolve(notebook):
    check_links(notebook, None, re.findall(r"\]\(([^)\s]+)\)", notebook.read_text()))


def check_links(page, text, links):
    """Every relative link leads to a file, and to a heading in it."""
    assert links or text is not None
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {link}"


def is_option(path):
    """Whether a dotted path is a section or an option; options of sources are those of any."""
    names = path.replace("<role>", "identity").split(".")
    if names[:2] == ["source", "options"] and len(names) == 3:
        return any(names[2] in inspect.signature(SOURCES[name]).parameters for name in SOURCES)
    section = SECTIONS
    for name in names:
        if not isinstance(section, dict) or name not in section:
            return False
        section = section[name]
    return True


@EACH_PAGE
def test_options_exist(page):
    text = page.read_text()
    named = re.findall(r"--config\.([\w.<>]+?)(?=[=\s`\"',)]|$)", text)
    starts = "|".join(map(re.escape, SECTIONS))
    in_spans = re.compile(rf"((?:{starts})(?:\.[\w<>]+)+)(?:=.*)?")
    spans = [found.group(1) for span in code_spans(page) if (found := in_spans.fullmatch(span))]
    spans = [span for span in spans if span not in NO_OPTIONS]
    wrong = [option for option in [*named, *spans] if not is_option(option)]
    assert wrong == []


def test_an_option_that_does_not_exist_is_found():
    assert is_option("source.options.root") and is_option("eval.networks.<role>.path")
    assert not is_option("source.options.rot") and not is_option("model.depth")
    assert not is_option("seed.more")


@EACH_PAGE
def test_modes_exist(page):
    assert set(re.findall(r"--mode=([a-z_]+)", page.read_text())) <= set(main.MODES)


def test_every_mode_and_verb_is_told_in_the_readme():
    text = (ROOT / "README.md").read_text()
    assert all(f"--mode={mode}" in text for mode in main.MODES)
    assert all(f"`{verb} --" in text for verb in infer.VERBS)


@EACH_PAGE
def test_files_of_commands_exist(page):
    folders = "configs|benchmarks|launch|studies|tests|docs|colab|diffsda_jax"
    for words in commands(page):
        for word in words:
            found = re.match(rf"(?:--\w+=)?((?:{folders})/[\w./]+)", word)
            if found and Path(found.group(1)).name not in EXAMPLES:
                assert (ROOT / found.group(1)).exists(), " ".join(words)
        if words[:2] == ["python", "-m"]:
            place = ROOT / words[2].replace(".", "/")
            assert place.with_suffix(".py").exists() or (place / "__main__.py").exists(), words


@EACH_PAGE
def test_files_named_in_the_text_exist(page):
    known = {path.as_posix() for path in ROOT.rglob("*.*") if not path.parts[-2].startswith(".")}
    for span in code_spans(page):
        if re.fullmatch(r"[\w/]+\.(py|sh|jsonl)(:\w+)?", span):
            name = span.partition(":")[0]
            if Path(name).name not in EXAMPLES:
                assert any(path.endswith(f"/{name}") for path in known), f"{page.name}: {span}"


@EACH_PAGE
def test_command_lines_are_taken(page):
    for words in commands(page):
        if words[:3] == ["python", "-m", "diffsda_jax.infer"] and len(words) > 4:
            if "--checkpoint=..." not in words and words[-1] != "--help":
                infer.make_parser().parse_args(words[3:])
        if words[:3] == ["python", "-m", "diffsda_jax.main"]:
            file = flag_value(words, "config")
            if file and file.startswith("configs/") and file != "configs/X.py":
                configuration.check_overrides(configuration.load_config(file), words[3:])
        script = ROOT / (words[1] if len(words) > 1 else "")
        if script.parent.name == "benchmarks":
            ours = words[2 : words.index("--") if "--" in words else None]
            for word in ours:
                option = word.partition("=")[0]
                told = script.read_text()
                assert not option.startswith("--") or f'"{option}"' in told or option[2:] in told


def test_configs_of_the_tables_exist_and_all_are_told():
    text = prose(ROOT / "README.md")
    table = text[text.index("## Configs") : text.index("## Results")]
    told = set(re.findall(r"`(?:configs/)?(\w+\.py)", table))
    assert told == {path.name for path in (ROOT / "configs").glob("*.py")}


def test_versions_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == diffsda_jax.__version__ and len(citation["references"]) == 1
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest.group(1) == diffsda_jax.__version__


def test_notebooks_are_kept_without_outputs():
    import nbformat

    assert len(NOTEBOOKS) == 3
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        assert f"colab/{path.name}" in notebook.cells[0].source  # the badge
        for cell in notebook.cells:
            assert cell.cell_type == "markdown" or (not cell.outputs and not cell.execution_count)


def test_nothing_private_is_told():
    told = subprocess.run(
        ["grep", "-rlE", r"/(tmp|work|root|home)/", *map(str, [*PAGES, *NOTEBOOKS])],
        capture_output=True,
        text=True,
    )
    assert told.stdout == "" and told.returncode == 1
