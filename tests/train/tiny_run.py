"""A tiny model, a data iterator with a position, and whole runs of them."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffsda_jax import sharding
from diffsda_jax.diffusion import edm
from diffsda_jax.factors import Factors
from diffsda_jax.train.checkpoint import Checkpointer
from diffsda_jax.train.loop import resume, train
from diffsda_jax.train.optimizer import make_optimizer, make_schedule
from diffsda_jax.train.state import create_state
from diffsda_jax.train.step import make_loss_fn, make_train_step
from diffsda_jax.train.writers import MetricWriter

BATCH, STEPS, FEATURES = 8, 5, 3
ROOT_KEY = 7


class TinyModel(nn.Module):
    """Stands in for the model: same methods, dropout and constants, but compiles in a second."""

    def setup(self):
        self.front, self.static, self.dynamic = nn.Dense(8), nn.Dense(3), nn.Dense(2)
        self.hidden, self.out = nn.Dense(16), nn.Dense(FEATURES)
        self.dropout = nn.Dropout(0.1)
        self.frequencies = self.variable("constants", "frequencies", lambda: jnp.arange(1.0, 5.0))

    def encode(self, x_clean, length=None, mask=None, train=False):
        real = jnp.arange(x_clean.shape[1])[None, :] < length[:, None]
        h = self.dropout(nn.tanh(self.front(x_clean)), deterministic=not train)
        mean = (h * real[..., None]).sum(1) / length[:, None]
        return Factors(static=self.static(mean), dynamic=self.dynamic(h))

    def denoise(self, x_noisy, sigma, factors, train=False):
        copies = len(x_noisy) // len(factors.static)
        factors = jax.tree.map(lambda leaf: jnp.repeat(leaf, copies, axis=0), factors)
        scale = edm.preconditioning(sigma)
        phase = scale.c_noise[..., None] * self.frequencies.value[None, None]
        static = jnp.repeat(factors.static[:, None], x_noisy.shape[1], axis=1)
        x_in = scale.c_in[..., None] * x_noisy
        h = jnp.concatenate([x_in, factors.dynamic, static, jnp.cos(phase), jnp.sin(phase)], -1)
        net_out = self.out(self.dropout(nn.silu(self.hidden(h)), deterministic=not train))
        return scale.c_skip[..., None] * x_noisy + scale.c_out[..., None] * net_out

    def __call__(self, x_clean, sigma, length):
        return self.denoise(x_clean, sigma, self.encode(x_clean, length))


class Batches:
    """Endless random sequences; the position is the number of batches given out."""

    def __init__(self, spoil_at: int | None = None):
        self.next_index = 0
        self.spoil_at = spoil_at

    def __iter__(self):
        return self

    def __next__(self):
        rng = np.random.default_rng(self.next_index)
        level = rng.normal(size=(BATCH, 1, FEATURES)) * 0.4
        x = level + 0.3 * rng.normal(size=(BATCH, STEPS, FEATURES))
        if self.next_index == self.spoil_at:
            x[:] = np.nan
        self.next_index += 1
        return {
            "x": x.astype(np.float32),
            "mask": np.ones((BATCH, STEPS, FEATURES), bool),
            "length": np.full(BATCH, STEPS, np.int32),
            "static_label": np.zeros(BATCH, np.int32),
        }

    def get_state(self):
        return {"next_index": self.next_index}

    def set_state(self, state):
        self.next_index = state["next_index"]


@functools.cache
def initial_variables():
    """Untrained variables, made once for all tests."""
    x, length = jnp.zeros((1, STEPS, FEATURES)), jnp.full(1, STEPS)
    return copy(TinyModel().init(jax.random.key(0), x, jnp.ones((1, STEPS)), length))


class _Parts:
    """What depends on nothing but the settings; compiled once for all tests."""

    def __init__(self, devices):
        self.mesh = sharding.make_mesh(jax.devices()[:devices])
        self.model = TinyModel()
        self.schedule = make_schedule(
            "cosine", learning_rate=1e-2, total_steps=1000, warmup_steps=2
        )
        self.optimizer = make_optimizer(self.schedule)
        self.loss_fn = make_loss_fn(self.model, noise_draws=2)
        self.gradient = jax.jit(jax.value_and_grad(self.loss_fn, has_aux=True))
        self.step_fn = make_train_step(
            self.loss_fn,
            self.optimizer,
            schedule=self.schedule,
            ema_half_life_examples=20.0,
            batch_size=BATCH,
            mesh=self.mesh,
        )


_make_parts = functools.cache(_Parts)


class Run:
    """Everything that ``train`` needs, with a new state, as a restarted process would have."""

    def __init__(self, workdir=None, total_steps=8, devices=8):
        self.workdir, self.total_steps = workdir, total_steps
        self.__dict__ |= vars(_make_parts(devices))
        self.state = create_state(initial_variables(), self.optimizer, self.mesh)
        self.data = Batches()

    def go(self, until=None, **options):
        """Resumes and trains to step ``until``; returns the result of ``train``."""
        checkpointer = Checkpointer(self.workdir / "checkpoints")
        writer = MetricWriter(self.workdir)
        try:
            self.state, self.meta = resume(checkpointer, self.state, self.data)
            return train(
                state=self.state,
                step_fn=self.step_fn,
                data_iterator=self.data,
                mesh=self.mesh,
                root_key=jax.random.key(ROOT_KEY),
                total_steps=until or self.total_steps,
                checkpointer=checkpointer,
                writer=writer,
                meta={"model": {"kind": "tiny"}},
                **({"log_every_steps": 3, "checkpoint_every_steps": 4} | options),
            )
        finally:
            writer.close()
            checkpointer.close()


def assert_trees_equal(first, second):
    """Same structure and the same bits."""
    jax.tree.map(np.testing.assert_array_equal, first, second)


def copy(tree):
    """Host copy that later donation cannot touch."""
    return jax.tree.map(lambda leaf: np.array(jnp.array(leaf)), tree)
