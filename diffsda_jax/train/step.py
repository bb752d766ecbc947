"""The loss of one batch and the jitted training step; pure functions."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffsda_jax import sharding
from diffsda_jax.diffusion import edm
from diffsda_jax.nets.applied import applied
from diffsda_jax.rngs import stream
from diffsda_jax.train.state import TrainState, place_state

BATCH_KEYS = ("x", "mask", "length")  # what the losses of sequence models read
FACTOR_KEYS = ("static", "dynamic")  # what those of priors read besides the length
DRAWS = "draws/"  # in a batch, before names of what ``make_draw_fn`` drew for it
Metrics = dict[str, Array]  # scalars
LossFn = Callable[[Any, Any, dict[str, Array], Array], tuple[Array, Metrics]]
GradientFn = Callable[[Any, Any, dict[str, Array], Array], tuple[Any, Metrics]]
DrawFn = Callable[[dict[str, Any], Array], dict[str, Array]]
StepFn = Callable[[TrainState, dict[str, Array], Array], tuple[TrainState, Metrics]]


@dataclasses.dataclass(frozen=True)
class LossOptions:
    """How a batch becomes a loss.

    Attributes:
      distribution: of the noise level, see ``edm.sample_sigma``.
      p_mean: mean of ln sigma.
      p_std: standard deviation of ln sigma.
      sigma_min: lowest noise level of the uniform distribution.
      sigma_max: highest noise level of the uniform distribution.
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
        """Checks values.

        Raises:
          ValueError: a number out of range, or an unknown weighting.
        """
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
    draw_fn = make_draw_fn(**options)

    def loss_fn(
        params: Any, constants: Any, batch: dict[str, Array], key: Array
    ) -> tuple[Array, Metrics]:
        variables = {"params": params, "constants": constants}

        def apply(method: str, *args: Any) -> Any:
            rngs = {"dropout": stream(key, f"dropout/{method}")} if use.train else None
            return applied(model, variables, *args, train=use.train, rngs=rngs, method=method)

        def draws(tree: Any) -> Any:
            return jax.tree.map(lambda leaf: jnp.repeat(leaf, use.noise_draws, axis=0), tree)

        given = [name for name in batch if name.startswith(DRAWS)]
        drawn = {name.removeprefix(DRAWS): batch[name] for name in given} or draw_fn(batch, key)
        x_seen = (
            batch["x"] + use.encoder_noise * drawn["encoder"] if use.encoder_noise else batch["x"]
        )
        factors = apply("encode", x_seen, batch.get("length"), batch.get("mask"))
        if use.dynamic_noise:  # every copy has its own; without it they share their factors
            factors = draws(factors)
            dynamic = jitter(factors.dynamic, use.dynamic_noise, stream(key, "dynamic"))
            factors = factors.replace(dynamic=dynamic)
        x_clean = draws(batch["x"])
        sigma = drawn["sigma"]
        x_noisy = x_clean + edm.expand(sigma, x_clean.ndim) * drawn["noise"]
        x_denoised = apply("denoise", x_noisy, sigma, factors)
        weight = edm.loss_weight(sigma, use.sigma_data, use.weighting)
        loss = edm.denoising_loss(x_denoised, x_clean, weight, draws(batch.get("mask")))
        return loss, {"loss": loss}

    return loss_fn


def make_draw_fn(**options: Any) -> DrawFn:
    """Builds what draws the randomness of the single loss, but for dropout and noise on d.

    Args:
      **options: fields of ``LossOptions``.

    Returns:
      ``draw(batch, key) -> {"sigma": [B K, V], "noise": [B K, V, ...]}``, and with
      ``encoder_noise`` also ``encoder`` of the shape of x. Of the batch only shape and type of
      ``x`` matter. Put into the batch, with ``DRAWS`` before the names, it takes the place of what
      ``make_loss_fn`` would draw, which is the same.
    """
    use = LossOptions(**options)

    def draw(batch: dict[str, Any], key: Array) -> dict[str, Array]:
        x, drawn = batch["x"], {}
        if use.encoder_noise:
            drawn["encoder"] = jax.random.normal(stream(key, "encoder"), x.shape, x.dtype)
        shape = (x.shape[0] * use.noise_draws, *x.shape[1:])
        drawn["sigma"] = edm.sample_sigma(
            stream(key, "sigma"),
            shape[:2],
            use.distribution,
            use.p_mean,
            use.p_std,
            use.sigma_min,
            use.sigma_max,
        )
        drawn["noise"] = jax.random.normal(stream(key, "noise"), shape, x.dtype)
        return drawn

    return draw


def jitter(values: Array, std: float, key: Array) -> Array:
    """Adds Gaussian noise of a standard deviation to values of any shape; 0 leaves them as is."""
    return values + std * jax.random.normal(key, values.shape, values.dtype) if std else values


def ema_decay(step: int | Array, half_life_examples: float, batch_size: int) -> Array:
    """Decay of the moving average at one step.

    ``0.5 ** (batch_size / half_life_examples)``, but never above ``(1 + step) / (10 + step)``, so
    that early averages follow the parameters instead of remembering the random start.

    Args:
      step: number of steps done before this one, a scalar.
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
    rules: Sequence[sharding.Rule] = (),
    accumulation_steps: int = 1,
    draw_fn: DrawFn | None = None,
) -> StepFn:
    """Builds the jitted step: gradient, clipping, AdamW, moving average, metrics.

    Args:
      loss_fn: of ``make_loss_fn``.
      optimizer: of ``make_optimizer``.
      schedule: the same schedule, to report the learning rate used.
      ema_half_life_examples: see ``ema_decay``.
      batch_size: global batch size B.
      mesh: of ``sharding.make_mesh``; B is split over it.
      rules: which arrays of the state are split how, see ``sharding.state_sharding``.
      accumulation_steps: micro-batches that the batch is worked on in, one after another; see
        ``in_micro_batches``.
      draw_fn: of ``make_draw_fn``; with it each item has the draws that it has in a whole batch.
        Without it each micro-batch has draws of its own.

    Returns:
      ``step(state, batch, root_key) -> (state, metrics)``. The memory of the given state is reused,
      so it must not be read afterwards. ``batch`` comes from ``sharding.shard_batch``; ``root_key``
      is the run's own, the same at every step. Metrics: ``loss``, ``grad_norm`` (before clipping),
      ``param_norm`` (after the update) and ``learning_rate``, float32 scalars.

    Raises:
      ValueError: the batch size cannot be split evenly over devices and micro-batches.
    """
    sharding.check_batch_size(batch_size, mesh, accumulation_steps=accumulation_steps)
    ema_decay(0, ema_half_life_examples, batch_size)

    def whole_loss(params: Any, constants: Any, batch: dict[str, Array], key: Array):
        params, constants = (sharding.gather(tree, mesh, rules) for tree in (params, constants))
        return loss_fn(params, constants, batch, key)

    gradient = jax.grad(whole_loss, has_aux=True)
    gradient = in_micro_batches(gradient, accumulation_steps, mesh, draw_fn)

    def train_step(
        state: TrainState, batch: dict[str, Array], root_key: Array
    ) -> tuple[TrainState, Metrics]:
        key = stream(root_key, "train", state.step)
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

    return jit_step(train_step, mesh, rules)


def in_micro_batches(
    gradient: GradientFn, steps: int, mesh: Mesh, draw_fn: DrawFn | None = None
) -> GradientFn:
    """The mean of the gradients and metrics of equal parts of a batch, one after another.

    For a loss that is a mean over items this is the gradient of the whole batch. Every device
    takes a part of each micro-batch from the items that it holds.

    Args:
      gradient: ``gradient(params, constants, batch, key) -> (grads, metrics)``.
      steps: number of parts; 1 returns ``gradient`` itself.
      mesh: that the batch is split over.
      draw_fn: draws for the whole batch at once; what ``gradient`` draws besides, such as dropout,
        depends on the number of parts.
    """
    if steps == 1:
        return gradient

    def accumulated(
        params: Any, constants: Any, batch: dict[str, Array], key: Array
    ) -> tuple[Any, Metrics]:
        if draw_fn is not None:
            drawn = draw_fn(batch, key)
            batch = batch | {f"{DRAWS}{name}": value for name, value in drawn.items()}
        count = len(batch["x"] if "x" in batch else batch["static"])
        parts = jax.tree.map(lambda leaf: _micro_batches(leaf, count, steps, mesh), batch)

        def add(total: Any, part: tuple[Array, dict[str, Array]]) -> tuple[Any, None]:
            number, items = part
            found = gradient(params, constants, items, stream(key, "micro_batch", number))
            return jax.tree.map(jnp.add, total, found), None

        first = jax.tree.map(lambda leaf: leaf[0], parts)
        shapes = jax.eval_shape(gradient, params, constants, first, key)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        total, _ = jax.lax.scan(add, zeros, (jnp.arange(steps), parts))
        return jax.tree.map(lambda leaf: leaf / steps, total)

    return accumulated


def _micro_batches(leaf: Array, count: int, steps: int, mesh: Mesh) -> Array:
    """``[B K, ...]`` as ``[steps, B K / steps, ...]``; item b is in micro-batch ``b % steps``.

    So every device keeps its own items, where a cut into consecutive ones would move them all.
    """
    copies, rest = len(leaf) // count, leaf.shape[1:]
    leaf = jnp.moveaxis(leaf.reshape(count // steps, steps, copies, *rest), 1, 0)
    leaf = leaf.reshape(steps, count // steps * copies, *rest)
    where = NamedSharding(mesh, PartitionSpec(None, sharding.BATCH_AXES))
    return jax.lax.with_sharding_constraint(leaf, where)


def jit_step(
    train_step: Callable[..., tuple[TrainState, Metrics]],
    mesh: Mesh,
    rules: Sequence[sharding.Rule] = (),
    fixed: Sequence[Any] = (),
) -> "ShardedStep":
    """Compiles ``step(state, batch, root_key)``; see ``ShardedStep``."""
    return ShardedStep(train_step, mesh, rules, fixed)


class ShardedStep:
    """A compiled training step that keeps the state where ``sharding.state_sharding`` says.

    The batch is split over the mesh, all else is whole. The memory of the given state is reused.

    Args:
      train_step: ``step(state, batch, root_key, *fixed) -> (state, metrics)``.
      mesh: of ``sharding.make_mesh``.
      rules: see ``sharding.state_sharding``.
      fixed: trees of arrays that are arguments of every call, and are placed as a state is.
    """

    def __init__(
        self,
        train_step: Callable[..., tuple[TrainState, Metrics]],
        mesh: Mesh,
        rules: Sequence[sharding.Rule],
        fixed: Sequence[Any],
    ):
        """Compiles nothing yet."""
        self._step, self._mesh, self._rules = train_step, mesh, rules
        self._fixed = [place_state(tree, mesh, rules) for tree in fixed]
        self._compiled: dict[Any, Any] = {}

    def __call__(
        self, state: TrainState, batch: dict[str, Array], root_key: Array
    ) -> tuple[TrainState, Metrics]:
        """One step, on the global arrays of a batch, ``x`` being ``[B, V, ...]``."""
        return self._program(state)(state, batch, root_key, *self._fixed)

    def trace(self, state: Any, batch: Any, root_key: Any) -> Any:
        """As ``jax.jit(...).trace``; shapes will do."""
        return self._program(state).trace(state, batch, root_key, *self._fixed)

    def num_programs(self) -> int:
        """How often it was compiled; more than once is a mistake of those who call it."""
        return sum(program._cache_size() for program in self._compiled.values())

    def _program(self, state: Any) -> Any:
        """The jitted step for states of this structure; of one model all have the same shapes."""
        structure = jax.tree.structure(state)
        if structure not in self._compiled:
            whole, split = sharding.replicated(self._mesh), sharding.batch_sharding(self._mesh)

            def placed(tree: Any) -> Any:
                if not sharding.splits_state(self._mesh, self._rules):
                    return whole
                return sharding.state_sharding(tree, self._mesh, self._rules)

            self._compiled[structure] = jax.jit(
                self._step,
                in_shardings=(placed(state), split, whole, *map(placed, self._fixed)),
                out_shardings=(placed(state), whole),
                donate_argnums=0,
            )
        return self._compiled[structure]
