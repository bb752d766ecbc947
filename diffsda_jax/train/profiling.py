"""A profiler's trace of some training steps."""

import logging
from pathlib import Path

import jax
from jax import Array

from diffsda_jax.train.state import TrainState
from diffsda_jax.train.step import Metrics, StepFn

logger = logging.getLogger(__name__)


def trace_steps(step_fn: StepFn, folder: Path, skip: int, steps: int) -> StepFn:
    """The same step, of which some calls are traced; TensorBoard and Perfetto show the result.

    The calls wait for the devices before and after the trace, and are the same calls otherwise.

    Args:
      step_fn: one training step.
      folder: of the trace; made if missing.
      skip: calls before the trace begins, of which the first compiles.
      steps: calls that are traced; nothing is written if there are fewer.

    Returns:
      ``step(state, batch, root_key) -> (state, metrics)``.

    Raises:
      ValueError: fewer than no calls before, or fewer than one traced.
    """
    if skip < 0 or steps < 1:
        raise ValueError(
            f"profile.skip is {skip} and profile.steps {steps}; needed: 0 or more, and 1 or more."
        )
    calls = 0

    def traced(
        state: TrainState, batch: dict[str, Array], root_key: Array
    ) -> tuple[TrainState, Metrics]:
        nonlocal calls
        if calls == skip:
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(folder))
        calls += 1
        if not skip < calls <= skip + steps:
            return step_fn(state, batch, root_key)
        with jax.profiler.StepTraceAnnotation("train", step_num=calls):
            result = step_fn(state, batch, root_key)
        if calls == skip + steps:
            jax.block_until_ready(result)
            jax.profiler.stop_trace()
            logger.info("%d step(s) traced: tensorboard --logdir %s", steps, folder)
        return result

    return traced
