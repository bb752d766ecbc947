"""Whole runs: resuming to the bit, interruption, non-finite losses, what is written."""

import json
import logging
import os
import re
import signal
import threading
import time

import jax
import numpy as np
import pytest
from tiny_run import ROOT_KEY, Batches, Run, assert_trees_equal, copy

from diffsda_jax.train.checkpoint import load_for_inference
from diffsda_jax.train.interrupt import Interrupt
from diffsda_jax.train.loop import NonFiniteLossError, Remedy, prefetch_batches


def read_lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_loop_is_the_plain_loop_of_steps(tmp_path):
    plain = Run()
    losses = []
    for _ in range(8):
        ((batch, _),) = [next(prefetch_batches(plain.data, plain.mesh, 0))]
        key = jax.random.key(ROOT_KEY)
        plain.state, metrics = plain.step_fn(plain.state, batch, key)
        losses.append(float(metrics["loss"]))
    result = Run(tmp_path).go()
    assert not result.interrupted and "8 of 8 steps done" in result.message
    assert_trees_equal(copy(result.state), copy(plain.state))

    lines = read_lines(tmp_path)
    assert [line["step"] for line in lines] == [3, 4, 6, 8]
    np.testing.assert_allclose(
        [line["train/loss"] for line in lines],
        [np.mean(losses[:3]), losses[3], np.mean(losses[4:6]), np.mean(losses[6:])],
        rtol=1e-6,
    )
    assert all(line["train/steps_per_second"] > 0 for line in lines)
    variables, meta = load_for_inference(tmp_path)
    assert_trees_equal(copy(variables["params"]), copy(plain.state.ema))
    assert meta["step"] == 8 and meta["model"] == {"kind": "tiny"}


def test_stopping_and_going_on_gives_the_same_bits(tmp_path):
    """4 + 3 + 5 steps in one workdir against 12 in another: state, average, moments and data."""
    once = Run(tmp_path / "once").go(12)
    for until in (4, 7, 12):
        run = Run(tmp_path / "parts")
        parts = run.go(until)
        assert (run.meta["step"] if run.meta else 0) == {4: 0, 7: 4, 12: 7}[until]
    assert_trees_equal(copy(parts.state), copy(once.state))
    assert run.meta["data_state"] == {"next_index": 7}
    assert run.step_fn.num_programs() == 1  # restored arrays lie as new ones do


def test_data_position_is_that_of_the_batches_used():
    run = Run()
    ahead = prefetch_batches(run.data, run.mesh, depth=3)
    twin = Batches()
    for used in (1, 2, 3):
        batch, position = next(ahead)
        np.testing.assert_array_equal(batch["x"], next(twin)["x"])
        assert position == {"next_index": used} and run.data.next_index == used + 3
        assert sorted(batch) == ["length", "mask", "x"]


def test_finished_run_does_nothing_more(tmp_path):
    first = Run(tmp_path).go(4)
    state = copy(first.state)
    for until in (4, 3):
        again = Run(tmp_path).go(until, evaluators=[(1, lambda *_: pytest.fail("called"))])
        assert_trees_equal(copy(again.state), state)
        assert not again.interrupted
        assert again.message.startswith("finished already: 4 steps are done and saved in")
    assert len(read_lines(tmp_path)) == 2


def test_evaluators_are_called_at_their_steps_and_at_the_end(tmp_path):
    calls = []
    evaluators = [
        (3, lambda step, state: calls.append(("a", step, int(state.step)))),
        (50, lambda step, state: calls.append(("b", step, int(state.step)))),
    ]
    Run(tmp_path).go(8, evaluators=evaluators)
    assert calls == [("a", 3, 3), ("a", 6, 6), ("a", 8, 8), ("b", 8, 8)]
    with pytest.raises(ValueError, match="eval_every_steps is 0; allowed: 1 or more"):
        Run(tmp_path / "other").go(8, evaluators=[(0, print)])


def test_non_finite_loss_names_step_metric_and_last_checkpoint(tmp_path):
    run = Run(tmp_path)
    run.data = Batches(spoil_at=5)
    with pytest.raises(NonFiniteLossError) as error:
        run.go(20)
    text = str(error.value)
    assert "loss is nan at step 6" in text and "last good checkpoint is step 4" in text
    assert "a new --workdir" in text and "\n" not in text
    (kept,) = re.findall(r"--config.train.init_from=(\S+) ", text)
    assert load_for_inference(kept)[1]["step"] == 4


@pytest.mark.parametrize(
    ("init_option", "end"),
    [
        ("", "Lower --config.a.rate, or look for extreme values in the data."),
        ("a.b", "Lower --config.a.rate, with --config.a.b={} to keep the last good weights, or"),
    ],
)
def test_non_finite_loss_gives_the_remedy_of_what_is_trained(tmp_path, init_option, end):
    run = Run(tmp_path)
    run.data = Batches(spoil_at=5)
    remedy = Remedy("Lower --config.a.rate", init_option)
    with pytest.raises(NonFiniteLossError) as error:
        run.go(20, remedy=remedy)
    assert f". {end.format(tmp_path / 'checkpoints')}" in str(error.value)


def test_non_finite_state_is_not_saved_even_at_a_checkpoint_step(tmp_path):
    run = Run(tmp_path)
    run.data = Batches(spoil_at=3)
    with pytest.raises(NonFiniteLossError, match="at step 4 .*there is no checkpoint") as error:
        run.go(20, log_every_steps=100)
    assert "init_from" not in str(error.value)
    assert not [path for path in (tmp_path / "checkpoints").iterdir() if path.name.isdecimal()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_leaves_and_the_next_run_goes_on_to_the_same_bits(tmp_path, number):
    before = signal.getsignal(number)
    run = Run(tmp_path / "stopped")
    sent = []

    def evaluate(step, state):
        if step == 3:
            sent.append(time.monotonic())
            os.kill(os.getpid(), number)

    result = run.go(9, evaluators=[(1, evaluate)], checkpoint_every_steps=100)
    assert time.monotonic() - sent[0] < 10
    assert signal.getsignal(number) is before
    assert result.interrupted and int(result.state.step) == 3
    assert f"stopped by {number.name}: 3 of 9 steps done" in result.message
    assert "run the same command again to go on" in result.message
    rest = Run(tmp_path / "stopped").go(9)
    once = Run(tmp_path / "once").go(9)
    assert_trees_equal(copy(rest.state), copy(once.state))


def test_signal_during_a_step_lets_it_finish(tmp_path):
    run = Run(tmp_path)
    run.step_fn = kill_after(run.step_fn, at=2)
    result = run.go(1000)
    assert result.interrupted and 2 <= int(result.state.step) < 1000
    assert load_for_inference(tmp_path)[1]["step"] == int(result.state.step)


def kill_after(step_fn, at):
    """The step function, sending SIGTERM from another thread while step ``at`` runs."""
    count = []

    def step(*args):
        count.append(1)
        if len(count) == at:
            threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGTERM)).start()
        return step_fn(*args)

    return step


def test_long_evaluation_is_dropped(tmp_path):
    done = []

    def evaluate(step, state):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
        done.append(step)

    start = time.monotonic()
    result = Run(tmp_path).go(2, evaluators=[(2, evaluate)])
    assert time.monotonic() - start < 30 and not done
    assert result.interrupted and "run --mode=eval to evaluate" in result.message


def test_signal_just_before_an_evaluation_saves_and_skips_all_of_them(tmp_path, monkeypatch):
    asked = Interrupt.requested

    def requested(self, step):
        answer = asked(self, step)
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return answer

    monkeypatch.setattr(Interrupt, "requested", requested)
    evaluators = [(2, lambda *_: pytest.fail("called")), (1, lambda *_: None)]
    result = Run(tmp_path).go(9, evaluators=evaluators, checkpoint_every_steps=100)
    assert result.interrupted and int(result.state.step) == 2
    assert load_for_inference(tmp_path)[1]["step"] == 2


def test_evaluations_begin_after_a_checkpoint_of_their_step(tmp_path):
    def evaluate(step, state):
        saved = [path.name for path in (tmp_path / "checkpoints").iterdir()]
        assert any(name.partition(".")[0] == str(step) for name in saved)  # or under way

    Run(tmp_path).go(5, evaluators=[(3, evaluate)], checkpoint_every_steps=100)


def test_second_ctrl_c_would_end_the_process_at_once(tmp_path):
    seen = []

    def evaluate(step, state):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        finally:
            seen.append(signal.getsignal(signal.SIGINT))

    Run(tmp_path).go(4, evaluators=[(1, evaluate)])
    assert seen == [signal.SIG_DFL]


def test_log_lines_tell_step_loss_speed_and_time_left(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "diffsda_jax"):
        Run(tmp_path).go(8)
    assert "step 3/8  loss " in caplog.text
    assert "steps/s" in caplog.text and "left" in caplog.text


def test_error_in_an_evaluation_is_not_swallowed(tmp_path):
    def evaluate(step, state):
        raise KeyError("broken")

    with pytest.raises(KeyError, match="broken"):
        Run(tmp_path).go(8, evaluators=[(4, evaluate)])
    assert load_for_inference(tmp_path)[1]["step"] == 4
