"""How the sequences of one kind of data are shown on a page: frames, lines or heat maps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from diffsda_jax.evals.pictures import enlarge, to_uint8
from diffsda_jax.page.blocks import Legend, Panel
from diffsda_jax.page.charts import Axis, Line, axis_of, line_chart
from diffsda_jax.page.media import Media, Shelf, heat_map

MOST_LINES = 16  # series with more features are drawn as heat maps
_VIDEO_PIXELS, _STRIP_PIXELS = 128, 64  # smaller frames are enlarged to at least this side
_STRIP_FRAMES = 5
_GAP_PIXELS = 2
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

    def draw(self, sequences: Sequence[Clip], alts: Sequence[str]) -> list[Media | Markup]:
        """Sequences that are compared with each other, on one scale; videos move.

        Args:
          sequences: real steps only, normalised.
          alts: what each is, for those who do not see it.
        """
        if self.kind == "series":
            return self._draw_series(sequences, alts)
        pairs = zip(sequences, alts, strict=True)
        return [
            self.shelf.add_animation(alt, list(enlarge(self._frames(x), _VIDEO_PIXELS)), self.fps)
            for x, alt in pairs
        ]

    def draw_still(self, sequences: Sequence[Clip], alts: Sequence[str]) -> list:
        """The same without motion: of videos a few frames beside each other."""
        if self.kind == "series":
            return self._draw_series(sequences, alts)
        strips = []
        for x, alt in zip(sequences, alts, strict=True):
            count = min(_STRIP_FRAMES, len(x))
            chosen = np.linspace(0, len(x) - 1, count).round().astype(int)
            frames = enlarge(self._frames(x)[chosen], _STRIP_PIXELS)
            gap = ((0, 0), (0, _GAP_PIXELS), (0, 0))
            padded = [np.pad(frame, gap, constant_values=128) for frame in frames]
            strips.append(self.shelf.add_picture(alt, np.concatenate(padded, axis=1)))
        return strips

    def _frames(self, x: Clip) -> np.ndarray:
        return to_uint8(np.asarray(self.to_frames(x[None]))[0])

    def _draw_series(self, sequences: Sequence[Clip], alts: Sequence[str]) -> list:
        """Lines in natural units, or heat maps of normalised values: there all have one scale."""
        if sequences[0].shape[1] > MOST_LINES:
            values = np.concatenate([x.ravel() for x in sequences])
            limits = tuple(np.percentile(values, _HEAT_PERCENTILES))
            pairs = zip(sequences, alts, strict=True)
            return [self.shelf.add_picture(alt, heat_map(x, limits)) for x, alt in pairs]
        natural = self.denormalize or np.asarray
        shown = [np.asarray(natural(x[None])[0]) for x in sequences]
        x_axis = Axis("step", 0.0, float(max(max(len(x) for x in shown) - 1, 1)))
        y_axis = axis_of(shown, "value")
        names = self.names(shown[0].shape[1])
        charts = []
        for x, alt in zip(shown, alts, strict=True):
            steps = np.arange(len(x))
            lines = [
                Line(names[feature], steps, x[:, feature], feature) for feature in range(x.shape[1])
            ]
            charts.append(line_chart(lines, x_axis, y_axis, alt))
        return charts


def panels_of(titles: Sequence[str], roles: Sequence[str], contents, alts) -> list[Panel]:
    """Panels with their titles and roles."""
    parts = zip(titles, contents, alts, roles, strict=True)
    return [Panel(title, content, alt, role) for title, content, alt, role in parts]
