"""Learning-rate schedules and the optimiser."""

import math

import jax.numpy as jnp
import optax
from jax import Array

SCHEDULES = ("cosine", "reference", "constant")


def make_schedule(
    name: str = "cosine",
    *,
    learning_rate: float,
    total_steps: int,
    warmup_steps: int = 0,
    steps_per_epoch: int | None = None,
) -> optax.Schedule:
    """Learning rate as a function of the number of steps done.

    - ``cosine``: linear from 0 to ``learning_rate`` over ``warmup_steps`` (the first step already
      moves: step i has ``(i + 1) / (warmup_steps + 1)``), then a cosine down to 0 at
      ``total_steps``.
    - ``constant``: the same warm-up, then ``learning_rate``.
    - ``reference``: constant within an epoch, without warm-up. Of E epochs the first two have the
      multipliers 1 and 2, and epoch e >= 2 has ``(1 + cos(pi (e - 2) / E)) / 2``, which ends close
      to 0 but not at it.

    Args:
      name: one of ``SCHEDULES``.
      learning_rate: the rate that multiplier 1 stands for.
      total_steps: length of the run in steps.
      warmup_steps: length of the warm-up in steps (``cosine`` and ``constant``).
      steps_per_epoch: needed by ``reference``.

    Returns:
      A function of the step (int or int32 scalar) that can be traced.

    Raises:
      ValueError: unknown name, a number out of range, or an argument the schedule cannot use.

    References:
      DiffSDA (arXiv 2510.05717), appendix on training (AdamW with cosine decay).
    """
    if name not in SCHEDULES:
        raise ValueError(f"schedule is {name!r}; allowed: {', '.join(map(repr, SCHEDULES))}.")
    if total_steps < 1:
        raise ValueError(f"num_steps is {total_steps}; allowed: 1 or more.")
    if not learning_rate > 0:
        raise ValueError(f"learning_rate is {learning_rate}; allowed: above 0.")
    if not 0 <= warmup_steps < total_steps:
        allowed = f"0 to total_steps - 1 = {total_steps - 1}"
        raise ValueError(f"warmup_steps is {warmup_steps}; allowed: {allowed}.")
    if name == "reference":
        if not steps_per_epoch or steps_per_epoch < 1 or warmup_steps:
            raise ValueError(
                f"schedule 'reference' got steps_per_epoch={steps_per_epoch} and warmup_steps="
                f"{warmup_steps}; it needs steps_per_epoch of 1 or more and warmup_steps=0."
            )
        return _reference_schedule(learning_rate, total_steps, steps_per_epoch)

    def schedule(step: int | Array) -> Array:
        warm = jnp.minimum(1.0, (step + 1) / (warmup_steps + 1))
        if name == "constant":
            return learning_rate * warm
        done = jnp.clip((step - warmup_steps) / (total_steps - warmup_steps), 0.0, 1.0)
        return learning_rate * warm * 0.5 * (1.0 + jnp.cos(jnp.pi * done))

    return schedule


def _reference_schedule(
    learning_rate: float, total_steps: int, steps_per_epoch: int
) -> optax.Schedule:
    """The schedule ``reference`` of ``make_schedule``."""
    epochs = math.ceil(total_steps / steps_per_epoch)

    # The source says "1, 2, 1, then a cosine over all epochs"; read as: the third epoch's 1 is the
    # cosine's own start.
    def schedule(step: int | Array) -> Array:
        epoch = jnp.asarray(step) // steps_per_epoch
        cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.clip((epoch - 2) / epochs, 0.0, 1.0)))
        return learning_rate * jnp.where(epoch == 1, 2.0, cosine)

    return schedule


def make_optimizer(
    schedule: optax.Schedule,
    *,
    weight_decay: float = 1e-5,
    clip_norm: float = 1.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """AdamW after clipping the gradient's global norm; the decay takes every parameter.

    Args:
      schedule: learning rate of ``make_schedule``.
      weight_decay: decoupled decay, multiplied by the learning rate; biases and norms included.
      clip_norm: largest global L2 norm of the gradient.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.

    Returns:
      An optax transformation.

    References:
      Loshchilov and Hutter, Decoupled Weight Decay Regularization, ICLR 2019, algorithm 2.
    """
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.adamw(schedule, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay),
    )
