"""What a page is made of, and the HTML of it; everything is embedded in one file."""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources

import jinja2
from markupsafe import Markup

from diffsda_jax.page.media import Media

_ASSETS = "assets"


@dataclass(frozen=True)
class Text:
    """A paragraph.

    Attributes:
      text: of it.
      missing: whether it says what is not there and how to get it.
      command: to type, shown below it.
    """

    text: str
    missing: bool = False
    command: str = ""
    block: str = "text"


@dataclass(frozen=True)
class Panel:
    """One picture, video, sound or chart with its title.

    Attributes:
      title: above it.
      content: embedded media, or a chart; None where it did not fit into the page.
      alt: what is seen or heard.
      role: ``static``, ``dynamic`` or ``result``: the colour of the title; or empty.
    """

    title: str
    content: Media | Markup | None
    alt: str
    role: str = ""


@dataclass(frozen=True)
class Row:
    """Panels beside each other where there is room, below each other on a phone.

    Attributes:
      panels: of one example; with ``joined`` only their titles are shown.
      caption: below them.
      joined: one video of all panels, beside each other in step.
    """

    panels: Sequence[Panel]
    caption: str = ""
    joined: Panel | None = None


@dataclass(frozen=True)
class Rows:
    """Examples below each other.

    Attributes:
      rows: of them.
      compact: the panels are small: examples stand beside each other where there is room, and the
        panels of each also do on a phone.
    """

    rows: Sequence[Row]
    compact: bool = False
    block: str = "rows"


@dataclass(frozen=True)
class Figure:
    """One wide picture or video with a caption."""

    panel: Panel
    caption: str = ""
    block: str = "figure"


@dataclass(frozen=True)
class Legend:
    """Names of the lines of the charts of a section, by their colours; a click hides a line."""

    names: Sequence[str]
    block: str = "legend"


@dataclass(frozen=True)
class Slider:
    """Pictures or charts, of which a slider shows one.

    Attributes:
      title: what is moved.
      role: ``static`` or ``dynamic``.
      places: in the slider's order; the title of each is shown beside the slider.
      start: number of the first one to be shown.
    """

    title: str
    role: str
    places: Sequence[Panel]
    start: int


@dataclass(frozen=True)
class Sliders:
    """Sliders beside each other where there is room."""

    sliders: Sequence[Slider]
    block: str = "sliders"


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
      caption: what it shows.
      header: of each column; those after the first ``num_texts`` are aligned as numbers.
      rows: as many cells in each; a row of one cell is a heading.
      num_texts: leading columns of text.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    num_texts: int = 1
    block: str = "table"


@dataclass(frozen=True)
class Details:
    """Text as it is, behind a line to click on."""

    summary: str
    text: str
    block: str = "details"


Block = Text | Rows | Figure | Legend | Sliders | Table | Details


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading.

    Attributes:
      name: anchor of links.
      title: heading.
      blocks: in their order.
    """

    name: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Tile:
    """One number at the top of the page.

    Attributes:
      value: with its unit.
      title: of what.
      hint: chance, and what is good.
    """

    value: str
    title: str
    hint: str


@dataclass(frozen=True)
class Page:
    """All of it.

    Attributes:
      title: of the run.
      lead: what was trained, in a few sentences.
      tiles: numbers at the top.
      sections: in their order.
      footer: sentences at the end.
    """

    title: str
    lead: str
    tiles: Sequence[Tile]
    sections: Sequence[Section]
    footer: Sequence[str] = field(default_factory=tuple)


def render_page(page: Page, when: datetime.datetime | None = None) -> str:
    """The page as one HTML document that needs no other file.

    Args:
      page: what is on it.
      when: it was made; None is now.
    """
    folder = resources.files(__package__) / _ASSETS
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8")),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    when = when or datetime.datetime.now().astimezone()
    return environment.get_template("page.html").render(
        page=page,
        when=when.strftime("%d %B %Y, %H:%M"),
        style=Markup((folder / "page.css").read_text(encoding="utf-8")),
        script=Markup((folder / "page.js").read_text(encoding="utf-8")),
    )
