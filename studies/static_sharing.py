"""Is it the sharing of s that separates the factors?

Generated stations and weather, whose labels of both kinds are known, cut down for a CPU: 24 steps
instead of 72, 500 training steps instead of 1,200. With a static factor of each step nothing in the
model keeps what changes out of s: if the decoder then takes all from s, a swap gives the static
donor back with its own weather.
Runtime: 9 CPU minutes in all; expected: half of that on two idle cores (AMD EPYC).
Command: python -m diffsda_jax.study --study=studies/static_sharing.py --out=runs/static_sharing
"""

from diffsda_jax.study import Metric, Study


def get_study():
    """Two models with three seeds."""
    return Study(
        title="One static factor for a sequence, or one for each step",
        question="Does the structure (one s for all steps) keep what changes out of s?",
        config="configs/known_factors.py",
        common={
            "data.length": 24,
            "train.num_steps": 500,
            "train.checkpoint_every_steps": 500,
            "eval.parts": ("judge", "swap", "one_factor"),
            "eval.num_clips": 300,
            "eval.num_train_clips": 1_000,
            "eval.num_swaps": 150,
            "eval.num_steps": 12,
            "eval.judge_steps": 400,
        },
        variants={
            "one s for the sequence": {"model.static_per_step": False},
            "one s for each step": {"model.static_per_step": True},
        },
        metrics=[
            Metric("swap/static_kept_percent", "station kept %", "high"),
            Metric("swap/dynamic_kept_percent", "order of the weather kept %", "high"),
            Metric("one_factor/static_only_nmse", "error from s alone"),
            Metric("one_factor/dynamic_only_nmse", "error from d alone"),
            Metric(
                "one_factor/static_only_dynamic_kept_percent",
                "order of the weather from s alone %",
                "low",
            ),
        ],
    )
