"""Distillation of the denoiser into a consistency function: its loss, and its training step."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from diffsda_jax import sharding
from diffsda_jax.diffusion import edm, multistep, schedules
from diffsda_jax.factors import Factors
from diffsda_jax.nets.applied import applied
from diffsda_jax.rngs import stream
from diffsda_jax.train.state import TrainState
from diffsda_jax.train.step import LossFn, Metrics, StepFn, jit_step, make_train_step

TRAINED = "denoiser"  # the part of the parameters that learns; the rest is the teacher's


@dataclasses.dataclass(frozen=True)
class DistillOptions:
    """How the student learns where the teacher's ODE ends.

    Attributes:
      sigma_min: level at which the paths end and the student is the identity.
      sigma_max: level at which the paths start.
      rho: how strongly the levels of a path crowd at low noise.
      path_steps: steps of the teacher from ``sigma_max`` to ``sigma_min``, one evaluation each.
      horizon: steps along the path after which the student's own answer (without gradient) is the
        target; 1 is consistency distillation, 0 the end of the path itself.
      draws: states of each path that the student is asked about.
      start_share: share of the draws that are the start of the path, which is all that sampling
        with one evaluation uses; the others are even over its levels.
      swap_share: share of sequences decoded with the d of another one, as in swaps.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    path_steps: int = 16
    horizon: int = 0
    draws: int = 4
    start_share: float = 0.25
    swap_share: float = 0.5

    def __post_init__(self):
        """Checks values.

        Raises:
          ValueError: one that is not allowed, with the option and what is.
        """
        for name, least in (("path_steps", 2), ("horizon", 0), ("draws", 1)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"distill.{name} is {getattr(self, name)}; allowed: {least} or more."
                )
        for name in ("start_share", "swap_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"distill.{name} is {getattr(self, name)}; allowed: 0 to 1.")


def make_distill_loss(student: nn.Module, teacher: nn.Module, **options: Any) -> LossFn:
    """Builds the loss: the student says at any state of the teacher's path where the path ends.

    The teacher's ODE is solved from noise, given factors of the (frozen) encoder; no noisy data are
    needed, so that swapped factors can be learnt as well. The student sees every step of a sequence
    by itself, as the denoiser does, so each step is asked at a level of its own.

    Args:
      student: module with ``encode`` and ``denoise``, the identity at ``sigma_min``.
      teacher: the same with the preconditioning of the teacher.
      **options: fields of ``DistillOptions``.

    Returns:
      ``loss(params, constants, batch, key) -> (loss, {"loss": loss})``, where ``constants`` holds
      ``model`` (those of the student) and ``teacher`` (all of its variables). Only the part
      ``denoiser`` of the parameters gets a gradient.

    Raises:
      ValueError: an option out of range.

    References:
      Song et al. 2023 (Consistency Models), algorithm 2, with the horizon of Luo et al. 2023
      (Latent Consistency Models: k steps between the two answers); Luhman and Luhman 2021
      (Knowledge Distillation in Iterative Generative Models) for the end of the path as target;
      Song and Dhariwal 2023 (the student itself, not its average, gives the targets).
    """
    use = DistillOptions(**options)
    grid = schedules.sigma_grid(use.path_steps + 1, use.sigma_min, use.sigma_max, use.rho)[:-1]
    levels = jnp.asarray(grid, jnp.float32)

    def loss_fn(
        params: Any, constants: Any, batch: dict[str, Array], key: Array
    ) -> tuple[Array, Metrics]:
        model_constants, taught = constants["model"], constants["teacher"]
        factors = applied(
            teacher, taught, batch["x"], batch.get("length"), batch.get("mask"), method="encode"
        )
        factors, mask = _swap_some(factors, batch.get("mask"), use.swap_share, stream(key, "swap"))

        def ask(params: Any, x: Array, sigma: Array) -> Array:
            variables = {"params": params, "constants": model_constants}
            return applied(student, variables, x, sigma, factors, method="denoise")

        path = _teacher_path(teacher, taught, factors, batch["x"], grid, stream(key, "start"))
        place = _draw_places(use, batch["x"].shape[:2], key)
        ahead = jnp.minimum(place + (use.horizon or use.path_steps), use.path_steps)
        target = _pick(path, ahead)
        if use.horizon:
            target = ask(jax.lax.stop_gradient(params), target, _rows(levels[ahead]))
        answer = ask(params, _pick(path, place), _rows(levels[place]))
        even = jnp.ones(answer.shape[:2])
        copies = None if mask is None else jnp.repeat(mask, use.draws, axis=0)
        loss = edm.denoising_loss(answer, jax.lax.stop_gradient(target), even, copies)
        return loss, {"loss": loss}

    return loss_fn


def _swap_some(
    factors: Factors, mask: Array | None, share: float, key: Array
) -> tuple[Factors, Array | None]:
    """Gives some sequences the d, and with it the mask, of the sequence before."""
    swapped = jax.random.bernoulli(key, share, (len(factors),))

    def rolled(values: Array) -> Array:
        return jnp.where(edm.expand(swapped, values.ndim), jnp.roll(values, 1, axis=0), values)

    dynamic, mask = jax.tree.map(rolled, (factors.dynamic, mask))
    return factors.replace(dynamic=dynamic), mask


def _teacher_path(
    teacher: nn.Module, variables: Any, factors: Factors, like: Array, grid: Any, key: Array
) -> Array:
    """States of the teacher's ODE at all levels of a grid, from noise on, ``[N + 1, B, V, ...]``.

    The solver is DPM-Solver++(2M), of second order with one evaluation a step.
    """

    def denoise(x: Array, sigma: Array) -> Array:
        even = jnp.broadcast_to(sigma, x.shape[:2])
        return applied(teacher, variables, x, even, factors, method="denoise")

    start = grid[0] * jax.random.normal(key, like.shape, jnp.float32)
    method = multistep.METHODS["dpmpp_2m"]
    states = multistep.solve(method, denoise, start, grid, trajectory=True)
    return jnp.concatenate([start[None], states])


def _draw_places(use: DistillOptions, batch_and_steps: tuple[int, ...], key: Array) -> Array:
    """Places on the paths but for their ends, ``[K, B, V]``: some at the start, the others even."""
    shape = (use.draws, *batch_and_steps)
    place = jax.random.randint(stream(key, "place"), shape, 0, use.path_steps)
    first = jax.random.bernoulli(stream(key, "first"), use.start_share, shape)
    return jnp.where(first, 0, place)


def _pick(path: Array, place: Array) -> Array:
    """States at given places, ``[B K, V, ...]``: the K copies of a sequence follow each other."""
    chosen = jnp.take_along_axis(path, edm.expand(place, path.ndim), axis=0)
    return _rows(chosen)


def _rows(copies: Array) -> Array:
    """``[K, B, ...]`` as ``[B K, ...]``."""
    return jnp.moveaxis(copies, 0, 1).reshape(-1, *copies.shape[2:])


def only_denoiser(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optimiser of the denoiser alone: the encoder keeps its bits, decay included."""

    def parts(params: Any) -> Any:
        return {name: "trained" if name == TRAINED else "kept" for name in params}

    return optax.multi_transform({"trained": optimizer, "kept": optax.set_to_zero()}, parts)


def make_distill_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    teacher: Any,
    *,
    mesh: Mesh,
    rules: Sequence[sharding.Rule] = (),
    **options: Any,
) -> StepFn:
    """Builds the jitted step of a student whose checkpoints do not hold its teacher.

    Args:
      loss_fn: of ``make_distill_loss``.
      optimizer: of ``only_denoiser``.
      teacher: variables of the teacher.
      mesh: as in ``step.make_train_step``.
      rules: as there; they hold for the teacher, too.
      **options: the others of ``step.make_train_step``.

    Returns:
      ``step(state, batch, root_key) -> (state, metrics)``, as of ``step.make_train_step``; the
      teacher's variables are an argument of the compiled program, not a part of it.

    Raises:
      ValueError: as ``step.make_train_step``.
    """
    inner = make_train_step(loss_fn, optimizer, mesh=mesh, rules=rules, **options)

    def with_teacher(
        state: TrainState, batch: dict[str, Array], root_key: Array, taught: Any
    ) -> tuple[TrainState, Metrics]:
        seen = state.replace(constants={"model": state.constants, "teacher": taught})
        after, metrics = inner(seen, batch, root_key)
        return after.replace(constants=state.constants), metrics

    return jit_step(with_teacher, mesh, rules, fixed=(teacher,))
