"""The loss of one batch and the jitted training step; pure functions."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from diffsda_jax import sharding
from diffsda_jax.diffusion import edm
from diffsda_jax.rngs import stream
from diffsda_jax.train.state import TrainState

BATCH_KEYS = ("x", "mask", "length")  # what the losses of sequence models read
FACTOR_KEYS = ("static", "dynamic")  # what those of priors read besides the length
Metrics = dict[str, Array]
LossFn = Callable[[Any, Any, dict[str, Array], Array], tuple[Array, Metrics]]
StepFn = Callable[[TrainState, dict[str, Array], Array], tuple[TrainState, Metrics]]


@dataclasses.dataclass(frozen=True)
class LossOptions:
    """How a batch becomes a loss.

    Attributes:
      distribution: of the noise level, see ``edm.sample_sigma``.
      p_mean: mean of ln sigma.
      p_std: standard deviation of ln sigma.
      sigma_min: lower end of the uniform distribution.
      sigma_max: upper end of the uniform distribution.
      sigma_data: standard deviation of the data.
      weighting: of the squared error at each noise level, see ``edm.loss_weight``.
      noise_draws: K noisy copies of every sequence; it is encoded once for all of them.
      dynamic_noise: standard deviation of Gaussian noise added to d; with a bounded d it limits
        how much d can hold, so that what stays moves to s, which has no noise. 0 in the paper.
      encoder_noise: standard deviation of Gaussian noise added to what the encoder sees, so that
        factors do not depend on details of one recording. 0 in the paper.
      train: apply dropout.
    """

    distribution: str = "log_normal"
    p_mean: float = -0.4
    p_std: float = 1.0
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    weighting: str = "edm"
    noise_draws: int = 1
    dynamic_noise: float = 0.0
    encoder_noise: float = 0.0
    train: bool = True

    def __post_init__(self):
        """Raises ValueError for a number out of range, or an unknown weighting."""
        edm.loss_weight(jnp.ones(()), self.sigma_data, self.weighting)
        if self.noise_draws < 1:
            raise ValueError(f"noise_draws is {self.noise_draws}; allowed: 1 or more.")
        for name in ("dynamic_noise", "encoder_noise"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: 0 or more.")


def make_loss_fn(model: nn.Module, **options: Any) -> LossFn:
    """Builds the single loss: encode the clean sequence, denoise noisy copies given its factors.

    Args:
      model: module with ``encode(x, length, mask, train=)`` and ``denoise(x_noisy, sigma, factors,
        train=)``, which takes K noisy sequences for each item of the factors.
      **options: fields of ``LossOptions``.

    Returns:
      ``loss(params, constants, batch, key) -> (loss, {"loss": loss})``. ``batch`` has ``x``
      ``[B, V, ...]``, and optionally ``mask`` (True = observed) and ``length`` ``[B]``. Noise
      levels are ``[B K, V]``, one for each place of each copy. The draws depend on ``key`` only,
      not on how the batch lies on the devices.

    Raises:
      ValueError: an option out of range.

    References:
      DiffSDA (arXiv 2510.05717), equation 9.
    """
    use = LossOptions(**options)

    def loss_fn(
        params: Any, constants: Any, batch: dict[str, Array], key: Array
    ) -> tuple[Array, Metrics]:
        variables = {"params": params, "constants": constants}

        def apply(method: str, *args: Any) -> Any:
            rngs = {"dropout": stream(key, f"dropout/{method}")} if use.train else None
            return model.apply(variables, *args, train=use.train, rngs=rngs, method=method)

        def draws(tree: Any) -> Any:
            return jax.tree.map(lambda leaf: jnp.repeat(leaf, use.noise_draws, axis=0), tree)

        x_seen = jitter(batch["x"], use.encoder_noise, stream(key, "encoder"))
        factors = apply("encode", x_seen, batch.get("length"), batch.get("mask"))
        if use.dynamic_noise:  # every copy has its own; without it they share their factors
            factors = draws(factors)
            dynamic = jitter(factors.dynamic, use.dynamic_noise, stream(key, "dynamic"))
            factors = factors.replace(dynamic=dynamic)
        x_clean = draws(batch["x"])
        sigma = edm.sample_sigma(
            stream(key, "sigma"),
            x_clean.shape[:2],
            use.distribution,
            use.p_mean,
            use.p_std,
            use.sigma_min,
            use.sigma_max,
        )
        noise = jax.random.normal(stream(key, "noise"), x_clean.shape, x_clean.dtype)
        x_noisy = x_clean + edm.expand(sigma, x_clean.ndim) * noise
        x_denoised = apply("denoise", x_noisy, sigma, factors)
        weight = edm.loss_weight(sigma, use.sigma_data, use.weighting)
        loss = edm.denoising_loss(x_denoised, x_clean, weight, draws(batch.get("mask")))
        return loss, {"loss": loss}

    return loss_fn


def jitter(values: Array, std: float, key: Array) -> Array:
    """Adds Gaussian noise of a standard deviation; 0 leaves the values as they are."""
    return values + std * jax.random.normal(key, values.shape, values.dtype) if std else values


def ema_decay(step: int | Array, half_life_examples: float, batch_size: int) -> Array:
    """Decay of the moving average at one step.

    ``0.5 ** (batch_size / half_life_examples)``, but never above ``(1 + step) / (10 + step)``, so
    that early averages follow the parameters instead of remembering the random start.

    Args:
      step: number of steps done before this one.
      half_life_examples: number of examples after which a parameter's weight has halved; 0 = the
        average is the parameters themselves.
      batch_size: global batch size.

    Returns:
      A scalar in [0, 1).

    Raises:
      ValueError: negative half life.

    References:
      Karras et al. 2022 (half life in examples); the ramp is the one of TensorFlow's
      ``ExponentialMovingAverage(num_updates=)``.
    """
    if half_life_examples < 0:
        raise ValueError(f"ema_half_life_examples is {half_life_examples}; allowed: 0 or more.")
    if half_life_examples == 0:
        return jnp.zeros(())
    return jnp.minimum(0.5 ** (batch_size / half_life_examples), (1.0 + step) / (10.0 + step))


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    schedule: optax.Schedule,
    ema_half_life_examples: float,
    batch_size: int,
    mesh: Mesh,
) -> StepFn:
    """Builds the jitted step: gradient, clipping, AdamW, moving average, metrics.

    Args:
      loss_fn: of ``make_loss_fn``.
      optimizer: of ``make_optimizer``.
      schedule: the same schedule, to report the learning rate used.
      ema_half_life_examples: see ``ema_decay``.
      batch_size: global batch size B.
      mesh: of ``sharding.make_mesh``; B is split over it, the state is whole on every device.

    Returns:
      ``step(state, batch, root_key) -> (state, metrics)``. The memory of the given state is reused,
      so it must not be read afterwards. ``batch`` comes from ``sharding.shard_batch``; ``root_key``
      is the run's own, the same at every step. Metrics: ``loss``, ``grad_norm`` (before clipping),
      ``param_norm`` (after the update) and ``learning_rate``, float32 scalars.

    Raises:
      ValueError: the batch size cannot be split evenly over the devices.
    """
    sharding.check_batch_size(batch_size, mesh)
    ema_decay(0, ema_half_life_examples, batch_size)

    def train_step(
        state: TrainState, batch: dict[str, Array], root_key: Array
    ) -> tuple[TrainState, Metrics]:
        key = stream(root_key, "train", state.step)
        gradient = jax.grad(loss_fn, has_aux=True)
        grads, metrics = gradient(state.params, state.constants, batch, key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = ema_decay(state.step, ema_half_life_examples, batch_size)
        ema = jax.tree.map(lambda old, new: new + decay * (old - new), state.ema, params)
        metrics = metrics | {
            "grad_norm": optax.tree.norm(grads),
            "param_norm": optax.tree.norm(params),
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
        }
        return state.replace(
            step=state.step + 1, params=params, ema=ema, opt_state=opt_state
        ), metrics

    return jit_step(train_step, mesh)


def jit_step(train_step: StepFn, mesh: Mesh) -> StepFn:
    """Compiles ``step(state, batch, root_key)``: the batch is split over the mesh, all else whole.

    The memory of the given state is reused.
    """
    whole, split = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    return jax.jit(
        train_step,
        in_shardings=(whole, split, whole),
        out_shardings=(whole, whole),
        donate_argnums=0,
    )
