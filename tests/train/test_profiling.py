"""Training steps traced on request."""

import jax
import jax.numpy as jnp
import pytest

from diffsda_jax.train.profiling import trace_steps
from diffsda_jax.train.state import TrainState


def run(folder, skip, steps, calls):
    """Results of some calls, and how many traces there were after each."""

    @jax.jit
    def step(state, batch, root_key):
        return state.replace(step=state.step + batch["x"]), {"loss": state.step}

    traced, results = trace_steps(step, folder, skip, steps), []
    state = TrainState(step=jnp.zeros(()), params={}, ema={}, opt_state=(), constants={})
    for _ in range(calls):
        state, metrics = traced(state, {"x": jnp.ones(())}, jax.random.key(0))
        results.append((float(metrics["loss"]), len(list(folder.glob("**/*.xplane.pb")))))
    return results


def test_a_trace_is_there_after_its_last_step_and_changes_no_result(tmp_path):
    assert run(tmp_path, 1, 2, 4) == [(0.0, 0), (1.0, 0), (2.0, 1), (3.0, 1)]
    assert b"train" in next(tmp_path.glob("**/*.xplane.pb")).read_bytes()


@pytest.mark.parametrize(("skip", "steps"), [(-1, 2), (0, 0)])
def test_what_cannot_be_traced_is_refused(tmp_path, skip, steps):
    with pytest.raises(ValueError, match=f"profile.skip is {skip} and profile.steps {steps}"):
        trace_steps(lambda *_: None, tmp_path, skip, steps)
