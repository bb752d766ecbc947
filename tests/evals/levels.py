"""A small world of series whose labels and factors are known: two levels and a course."""

import numpy as np

from diffsda_jax.data.sources.tasks import Task
from diffsda_jax.evals.context import Context, EvalSettings
from diffsda_jax.evals.interface import valid_steps
from diffsda_jax.evals.judges import Judge, JudgeNet
from diffsda_jax.factors import Factors

NUM_STEPS = 8
TASKS = (Task("height", "target_height", "classes", "static", 2, "mlp", (), ("accuracy",)),)


def arrays(count, seed):
    """Channels: the level (3 classes), the height (2 classes), a course that rises or falls."""
    rng = np.random.default_rng(seed)
    level, height, falls = (rng.integers(classes, size=count) for classes in (3, 2, 2))
    course = np.linspace(-1, 1, NUM_STEPS) * np.where(falls, -1, 1)[:, None]
    x = np.stack(np.broadcast_arrays(level[:, None], 3.0 * height[:, None], course), -1)
    return {
        "x": (x + 0.01 * rng.standard_normal(x.shape)).astype(np.float32),
        "length": np.full(count, NUM_STEPS, np.int32),
        "static_label": level,
        "target_height": height.astype(np.float32),
        "dynamic_label": falls,
        "factor_dynamic": course[..., None].astype(np.float32),
    }


class Oracle:
    """s are the two levels, d the course; what is decoded is what is asked for."""

    def encode(self, x, length=None, mask=None):
        keep = valid_steps(x.shape, length)[..., None]
        static = np.where(keep, x[..., :2], 0).sum(1) / keep.sum(1)
        return Factors(static=static.astype(np.float32), dynamic=np.asarray(x[..., 2:]))

    def decode(self, factors, start=None, num_steps=32, seed=0):
        static = np.repeat(factors.static[:, None], factors.dynamic.shape[1], axis=1)
        return np.concatenate([static, factors.dynamic], axis=-1)

    def invert(self, x, factors, num_steps=32):
        return np.asarray(x)


class Rotated(Oracle):
    """The same, but each of the two static codes holds both levels."""

    turn = np.array([[1, 1], [1, -1]], np.float32) / np.sqrt(2)

    def encode(self, x, length=None, mask=None):
        factors = super().encode(x, length)
        return factors.replace(static=factors.static @ self.turn)

    def decode(self, factors, start=None, num_steps=32, seed=0):
        return super().decode(factors.replace(static=factors.static @ self.turn))


class Clueless(Oracle):
    """Codes are noise, and so is which real clip is decoded."""

    def __init__(self, x):
        """Remembers what to decode."""
        self._x, self._rng = x, np.random.default_rng(7)

    def encode(self, x, length=None, mask=None):
        draw = self._rng.standard_normal
        return Factors(
            static=draw((len(x), 2), np.float32), dynamic=draw((*x.shape[:2], 1), np.float32)
        )

    def decode(self, factors, start=None, num_steps=32, seed=0):
        return self._x[self._rng.integers(len(self._x), size=len(factors.dynamic))]


class Stuck(Oracle):
    """Knows the factors, but decodes only those it was told first: changes nothing."""

    def __init__(self, x):
        """Remembers what to decode."""
        self._x = x

    def decode(self, factors, start=None, num_steps=32, seed=0):
        return start


class ExactJudge(Judge):
    """Reads one label or more off the channels."""

    def predict(self, x, length=None, mask=None):
        """The classes of `arrays`."""
        middle = x.mean(1)
        return {
            "static": np.clip(np.rint(middle[:, 0]), 0, 2).astype(int),
            "dynamic": (x[:, -1, 2] < x[:, 0, 2]).astype(int),
        }


class HeightJudge(Judge):
    """Reads the height, as the judge of a static label."""

    def predict(self, x, length=None, mask=None):
        """The class of the second channel."""
        return {"static": (x[..., 1].mean(1) > 1.5).astype(int)}


def make_context(model, num_train=400, num_test=300, **changes):
    """An evaluation of a model of this world, by exact judges."""
    train, test = arrays(num_train, 0), arrays(num_test, 1)
    sides = {"train": train, "test": test}
    factors = {f"{k}_factors": model.encode(v["x"], v["length"]) for k, v in sides.items()}
    return Context(
        model=model,
        kind="series",
        judge=ExactJudge(net=JudgeNet(3, 2, 4), params={}),
        settings=EvalSettings(num_swaps=150),
        readers=train,
        trial=np.arange(num_test),
        tasks=TASKS,
        **sides,
        **factors,
        **changes,
    )
