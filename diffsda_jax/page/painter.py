"""How the sequences of one kind of data are shown on a page: frames, lines or heat maps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from diffsda_jax.evals.pictures import enlarge, to_uint8
from diffsda_jax.page.blocks import Legend, Panel, Row
from diffsda_jax.page.charts import Axis, Line, axis_of, line_chart
from diffsda_jax.page.media import Media, Shelf, heat_map

MOST_LINES = 16  # series with more features are drawn as heat maps
_VIDEO_PIXELS, _STRIP_PIXELS = 128, 64  # smaller frames are enlarged to at least this side
_STRIP_FRAMES = 5
_GAP_PIXELS = 4
_HEAT_PERCENTILES = (0.5, 99.5)
Clip = Float[np.ndarray, "V *element"]


@dataclass(frozen=True)
class Painter:
    """Draws normalised sequences.

    Attributes:
      shelf: that pictures and videos are embedded in.
      kind: ``video`` or ``series``.
      to_frames: of video: normalised clips to frames in [-1, 1]; None where there are no frames.
      denormalize: of series: to the units of the data.
      feature_names: of series.
      fps: of video.
    """

    shelf: Shelf
    kind: str
    to_frames: Callable[[np.ndarray], np.ndarray] | None = None
    denormalize: Callable[[np.ndarray], np.ndarray] | None = None
    feature_names: Sequence[str] | None = None
    fps: float = 8.0

    @property
    def can_draw(self) -> bool:
        """Whether sequences can be shown at all."""
        return self.kind == "series" or self.to_frames is not None

    def names(self, num_features: int) -> list[str]:
        """A name for each feature of a series."""
        given = list(self.feature_names or ())
        return [*given, *(f"feature {i + 1}" for i in range(len(given), num_features))]

    def legend(self, num_features: int) -> list[Legend]:
        """The legend of the charts, where there are charts."""
        if self.kind == "video" or num_features > MOST_LINES:
            return []
        return [Legend(self.names(num_features)[:num_features])]

    def hint(self, num_features: int) -> str:
        """A sentence on how to read what is not drawn as lines."""
        if self.kind == "video" or num_features <= MOST_LINES:
            return ""
        return " Steps go to the right, features upwards; the brighter, the larger the value."

    def row(
        self,
        panels: Sequence[tuple[str, str, str]],
        clips: Sequence[Clip],
        caption: str,
    ) -> Row:
        """Sequences that are compared with each other, on one scale; videos move in step.

        Args:
          panels: title, role and description of each.
          clips: as many, normalised, real steps only.
          caption: below them.

        Raises:
          ValueError: video, and no ``to_frames``.
        """
        titles, roles, alts = zip(*panels, strict=True)
        if self.kind == "series":
            contents = self._draw_series(clips, alts)
        else:
            contents = [None] * len(clips)
        parts = zip(titles, contents, alts, roles, strict=True)
        row = Row([Panel(*part) for part in parts], caption)
        if self.kind == "series":
            return row
        name = ", ".join(f"{title}: {alt}" for title, alt in zip(titles, alts, strict=True))
        return replace(row, joined=Panel("", self._join(clips, name), name))

    def places(self, titles: Sequence[str], clips: Sequence[Clip], what: str) -> list[Panel]:
        """Sequences without motion, one for each place of a slider; of videos a few frames.

        Args:
          titles: of the places.
          clips: as many, normalised, real steps only.
          what: is moved, for those who do not see it.

        Raises:
          ValueError: video, and no ``to_frames``.
        """
        alts = [f"{what}: {title}" for title in titles]
        if self.kind == "series":
            contents = self._draw_series(clips, alts)
        else:
            contents = [self._strip(x, alt) for x, alt in zip(clips, alts, strict=True)]
        parts = zip(titles, contents, alts, strict=True)
        return [Panel(title, content, alt) for title, content, alt in parts]

    def _join(self, clips: Sequence[Clip], name: str) -> Media | None:
        """Clips as one video, beside each other; a shorter one ends with its last frame."""
        shown = [enlarge(self._frames(x), _VIDEO_PIXELS) for x in clips]
        longest = max(len(frames) for frames in shown)
        shown = [frames[np.minimum(np.arange(longest), len(frames) - 1)] for frames in shown]
        return self.shelf.add_animation(name, list(_side_by_side(shown)), self.fps)

    def _strip(self, x: Clip, name: str) -> Media | None:
        """Evenly spaced frames beside each other."""
        chosen = np.linspace(0, len(x) - 1, min(_STRIP_FRAMES, len(x))).round().astype(int)
        frames = enlarge(self._frames(x)[chosen], _STRIP_PIXELS)
        return self.shelf.add_picture(name, _side_by_side(list(frames)))

    def _frames(self, x: Clip) -> np.ndarray:
        if self.to_frames is None:
            raise ValueError(
                "a painter of video has to_frames=None and cannot draw; give to_frames, or leave "
                "out what can_draw says cannot be drawn."
            )
        return to_uint8(np.asarray(self.to_frames(x[None]))[0])

    def _draw_series(
        self, clips: Sequence[Clip], alts: Sequence[str]
    ) -> list[Media | Markup | None]:
        """Lines in natural units, or heat maps of normalised values: there all have one scale."""
        if clips[0].shape[1] > MOST_LINES:
            values = np.concatenate([x.ravel() for x in clips])
            limits = tuple(np.percentile(values, _HEAT_PERCENTILES))
            pairs = zip(clips, alts, strict=True)
            return [self.shelf.add_picture(alt, heat_map(x, limits)) for x, alt in pairs]
        natural = self.denormalize or np.asarray
        shown = [np.asarray(natural(x[None])[0]) for x in clips]
        x_axis = Axis("step", 0.0, float(max(max(len(x) for x in shown) - 1, 1)))
        y_axis = axis_of(shown, "value")
        names = self.names(shown[0].shape[1])
        charts: list[Media | Markup | None] = []
        for x, alt in zip(shown, alts, strict=True):
            steps = np.arange(len(x))
            lines = [
                Line(names[feature], steps, x[:, feature], feature) for feature in range(x.shape[1])
            ]
            charts.append(line_chart(lines, x_axis, y_axis, alt))
        return charts


def _side_by_side(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures ``[..., H, W, 3]`` from left to right, with a grey gap between them."""
    gap = np.full((*pictures[0].shape[:-2], _GAP_PIXELS, 3), 128, np.uint8)
    parts = [part for picture in pictures for part in (picture, gap)]
    return np.concatenate(parts[:-1], axis=-2)
