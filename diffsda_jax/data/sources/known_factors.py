"""Weather stations with known factors: what a perfect separation looks like is known exactly.

A made-up world of stations, seasons and weather. The static factor is where and when: four
numbers of the station and two of the season. The dynamic factor is the weather of each step: how
strong rain, heat and wind are, and where in its cycle the breeze is. `KnownFactors.render` makes
the channels of any static factor with any dynamic one, so a swap can be held against the true
swapped series.
"""

import itertools
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from diffsda_jax.data.sources.base import ElementSpec, Source
from diffsda_jax.data.sources.tasks import Task

FRONTS = ("rain", "heat", "wind")
SEASONS = ("winter", "spring", "summer", "autumn")
STATIC_FACTORS = ("altitude", "coast", "shelter", "city", "warmth", "daylight")
DYNAMIC_FACTORS = (*FRONTS, "breeze_sin", "breeze_cos")
PROGRAMMES = tuple(itertools.permutations(range(len(FRONTS))))
MIN_STEPS = 24
_CYCLE_STEPS = 24  # mean period of the breeze
_PACE_STEPS = 6  # between changes of its pace
_PACE = (0.1, 1.9)
_STATION_FACTORS = 4
_STATION_TRIES = 64  # candidates for each next station, the farthest of which is taken
_MIXING_SPREAD = 0.12  # how much a static factor of 1 changes the mixing of the dynamic ones
_GAIN_SPREAD = 0.15
_OFFSET_SPREAD = 0.8
_CYCLE_SHARE = 0.4  # weight of the breeze against a front
_PEAK = (0.7, 1.0)
_CALM, _FRONT = 1.0, 4.0  # relative mean durations
_FIXED_SHARE = 0.6  # of each duration; the rest is random
_CONCENTRATION = 1.5  # of the random rest, per unit of duration; larger is more regular
_DEFAULT_SEQUENCES = {"train": 10000, "test": 500}
_WORLD_STREAM = 2  # 0 and 1 are the sequences of train and test


class KnownFactors(Source):
    """Series of a random station, season and weather, each a function of (seed, split, index).

    The weather is a path through the regimes calm, front, calm, front, calm, front, calm of random
    durations. Each of the three fronts comes once and with the same distribution of strength,
    whatever the station; the class of the weather (`dynamic_label`) is their order, so nothing
    but the order of steps tells it. The breeze turns at a wandering pace all along. Splits share
    the stations and no weather.

    Elements: `x` `[V, F]`, `static_label` (station), `static_id` (station and season),
    `dynamic_label` (index into `PROGRAMMES`), `target_season` (index into `SEASONS`), and the true
    factors: `factor_static` `[6]` and `factor_dynamic` `[V, 5]`, float32, named by `factor_names`.

    Args:
        split: "train" or "test".
        num_sequences: elements of an epoch; None for 10,000 (train) or 500 (test).
        length: V, 24 or more.
        num_features: F, 5 or more, so that no two weathers look alike.
        num_stations: 2 or more.
        noise: standard deviation of white noise on every channel; the channels themselves have one
            of about 1.
        seed: of the world and of the sequences.

    Raises:
        ValueError: a value outside these.
    """

    name, kind = "known_factors", "series"
    tasks = (
        Task(
            "season", "target_season", "classes", "static", len(SEASONS), "mlp", (), ("accuracy",)
        ),
    )
    factor_names = {"factor_static": STATIC_FACTORS, "factor_dynamic": DYNAMIC_FACTORS}

    def __init__(
        self,
        split: str,
        num_sequences: int | None = None,
        length: int = 72,
        num_features: int = 8,
        num_stations: int = 12,
        noise: float = 0.05,
        seed: int = 0,
    ):
        """Draws the world; sequences are drawn when they are asked for."""
        super().__init__(split)
        self._num_sequences = _DEFAULT_SEQUENCES[split] if num_sequences is None else num_sequences
        for option, value, least in (
            ("num_sequences", self._num_sequences, 1),
            ("length", length, MIN_STEPS),
            ("num_features", num_features, len(DYNAMIC_FACTORS)),
            ("num_stations", num_stations, 2),
            ("noise", noise, 0),
            ("seed", seed, 0),
        ):
            if value < least:
                raise ValueError(f"{option}={value} of source {self.name!r}: use {least} or more")
        self._length, self._noise, self._seed = length, noise, seed
        self.spec = ElementSpec(
            kind="series",
            shape=(num_features,),
            static_names=tuple(f"station {number}" for number in range(1, num_stations + 1)),
            dynamic_names=tuple(", ".join(FRONTS[k] for k in order) for order in PROGRAMMES),
            feature_names=tuple(f"channel {number}" for number in range(1, num_features + 1)),
        )
        world = np.random.default_rng([seed, _WORLD_STREAM])
        self._stations = _spread_points(world, num_stations, _STATION_FACTORS)
        sizes = (len(STATIC_FACTORS), num_features)
        self._offset = _OFFSET_SPREAD * world.uniform(-1, 1, sizes)
        self._gain = _GAIN_SPREAD * world.uniform(-1, 1, sizes)
        square = world.standard_normal((num_features, len(DYNAMIC_FACTORS)))
        # Orthogonal columns: no dynamic factor hides behind another.
        self._mixing = np.linalg.qr(square)[0] * np.sqrt(num_features)
        self._bend = _MIXING_SPREAD * world.standard_normal((len(STATIC_FACTORS), *square.shape))

    def __len__(self) -> int:
        """Number of sequences in an epoch."""
        return self._num_sequences

    def lengths(self) -> np.ndarray:
        """`length` for every sequence."""
        return np.full(len(self), self._length)

    def static_factors(self, station: int, season: int) -> Float32[np.ndarray, " K_s"]:
        """The numbers of a station and a season, in the order of `STATIC_FACTORS`."""
        angle = 2 * np.pi * season / len(SEASONS)
        turn = (-np.cos(angle), np.sin(angle))  # warmth is lowest in winter, season 0
        return np.concatenate([self._stations[station], turn]).astype(np.float32)

    def render(
        self,
        static: Float[np.ndarray, "*batch K_s"],
        dynamic: Float[np.ndarray, "*batch V K_d"],
    ) -> Float32[np.ndarray, "*batch V F"]:
        """The channels of a place and season under a weather, without noise.

        Each step is `offset + gain * bend(mixing @ weather)`, where offset, gain and mixing are
        functions of the static factors and `bend` is an increasing curve.

        Args:
            static: in the order of `STATIC_FACTORS`.
            dynamic: in the order of `DYNAMIC_FACTORS`.
        """
        mixing = self._mixing + np.tensordot(static, self._bend, axes=1)  # [*batch, F, K_d]
        weights = np.array([1.0] * len(FRONTS) + [_CYCLE_SHARE] * 2)
        mixed = (dynamic * weights) @ np.swapaxes(mixing, -1, -2)
        gain = np.exp(static @ self._gain)[..., None, :]
        offset = (static @ self._offset)[..., None, :]
        return (offset + gain * (0.4 * mixed + np.tanh(mixed))).astype(np.float32)

    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Sequence `index`; draws nothing from `rng`, so that it is the same in every epoch.

        Raises:
            IndexError: there is no such sequence.
        """
        del rng
        if not 0 <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        own = np.random.default_rng([self._seed, int(self.split == "test"), index])
        station = int(own.integers(len(self._stations)))
        season = int(own.integers(len(SEASONS)))
        programme = int(own.integers(len(PROGRAMMES)))
        static = self.static_factors(station, season)
        dynamic = sample_weather(programme, own, self._length)
        x = self.render(static, dynamic)
        return {
            "x": x + self._noise * own.standard_normal(x.shape).astype(np.float32),
            "mask": np.ones(x.shape, bool),
            "static_label": station,
            "static_id": station * len(SEASONS) + season,
            "dynamic_label": programme,
            "target_season": season,
            "factor_static": static,
            "factor_dynamic": dynamic,
        }

    def _identity(self) -> Any:
        return [self._num_sequences, self._length, self._noise, self._seed]


def sample_weather(
    programme: int, rng: np.random.Generator, num_steps: int
) -> Float32[np.ndarray, "V K_d"]:
    """Draws the weather of one of the `PROGRAMMES`.

    Args:
        programme: index into `PROGRAMMES`.
        rng: source of randomness.
        num_steps: V.

    Returns:
        The dynamic factors of every step: fronts in [0, 1], sine and cosine of the breeze.
    """
    means = np.array([_CALM, _FRONT] * len(FRONTS) + [_CALM])
    shares = _FIXED_SHARE * means / means.sum()
    shares += (1 - _FIXED_SHARE) * rng.dirichlet(_CONCENTRATION * means)
    borders = np.concatenate([[0.0], np.cumsum(shares)])
    time = (np.arange(num_steps) + 0.5) / num_steps
    weather = np.zeros((num_steps, len(DYNAMIC_FACTORS)))
    for place, front in enumerate(PROGRAMMES[programme]):
        start, stop = borders[2 * place + 1 : 2 * place + 3]
        phase = np.clip((time - start) / (stop - start), 0.0, 1.0)
        rise = np.where(phase < 1.0, np.sin(np.pi * phase) ** 2, 0.0)
        weather[:, front] = rng.uniform(*_PEAK) * rise
    # A wandering pace: the cycle of a fixed one would be a constant of the sequence, its phase,
    # which a static code may rightly hold.
    knots = rng.uniform(*_PACE, size=num_steps // _PACE_STEPS + 2)
    pace = np.interp(np.arange(num_steps) / _PACE_STEPS, np.arange(len(knots)), knots)
    angle = 2 * np.pi * (rng.uniform() + np.cumsum(pace) / _CYCLE_STEPS)
    weather[:, -2:] = np.stack([np.sin(angle), np.cos(angle)], axis=-1)
    return weather.astype(np.float32)


def _spread_points(
    rng: np.random.Generator, count: int, size: int
) -> Float[np.ndarray, "count size"]:
    """Points in [-1, 1]^size that keep a distance from one another."""
    points = rng.uniform(-1, 1, (1, size))
    while len(points) < count:
        tries = rng.uniform(-1, 1, (_STATION_TRIES, size))
        distance = np.linalg.norm(tries[:, None] - points, axis=-1).min(axis=1)
        points = np.concatenate([points, tries[[int(np.argmax(distance))]]])
    return points
