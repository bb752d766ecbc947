"""Which noise should a swap start from?

Generated stations and weather, whose labels of both kinds are known, cut down for a CPU: 24 steps
instead of 72, 500 training steps instead of 1,200. The variants differ in the evaluation only, so
one model is trained for each seed. `target` and `donor` start from the inverted noise of the clip
that gives s or d, which can bring along more of that clip than its factor.
Runtime: 7 CPU minutes in all; expected: half of that on two idle cores (AMD EPYC).
Command: python -m diffsda_jax.study --study=studies/start_noise.py --out=runs/start_noise
"""

from diffsda_jax.study import Metric, Study

STARTS = ("random", "zero", "target", "donor")


def get_study():
    """Four evaluations of three models."""
    return Study(
        title="Start noise of swaps",
        question="What do swaps keep of either donor, by the noise that they start from?",
        config="configs/known_factors.py",
        common={
            "data.length": 24,
            "train.num_steps": 500,
            "train.checkpoint_every_steps": 500,
            "eval.parts": ("judge", "swap"),
            "eval.num_clips": 300,
            "eval.num_train_clips": 1_000,
            "eval.num_swaps": 150,
            "eval.num_steps": 12,
            "eval.judge_steps": 400,
        },
        variants={start: {"eval.start": start} for start in STARTS},
        metrics=[
            Metric("swap/static_kept_percent", "station kept %", "high"),
            Metric("swap/dynamic_kept_percent", "order of the weather kept %", "high"),
            Metric("swap/both_kept_percent", "both kept %", "high"),
        ],
    )
