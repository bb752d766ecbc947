"""How wide should d be?

Japanese vowels, 300 training steps instead of 1,000, so numbers are worse than in docs/results.md.
A wider d can hold more of the clip, and more of its speaker.
Runtime: 9 CPU minutes in all; expected: half of that on two idle cores (AMD EPYC).
Command: python -m diffsda_jax.study --study=studies/dynamic_width.py --out=runs/dynamic_width
"""

from diffsda_jax.study import Metric, Study

WIDTHS = (1, 2, 4, 8)


def get_study():
    """Four models with three seeds."""
    return Study(
        title="Width of the dynamic factor",
        question="What does a wider d gain in detail, and what does it tell of the speaker?",
        config="configs/japanese_vowels.py",
        common={
            "train.num_steps": 300,
            "train.checkpoint_every_steps": 300,
            "eval.parts": ("verification", "probes", "reconstruction"),
            "eval.num_swaps": 100,
            "eval.num_steps": 12,
        },
        variants={f"D = {width}": {"model.dynamic_dim": width} for width in WIDTHS},
        x={f"D = {width}": width for width in WIDTHS},
        x_label="D",
        metrics=[
            Metric("verification/static_eer_percent", "static EER %", "low"),
            Metric("verification/dynamic_eer_percent", "dynamic EER %", "high"),
            Metric("verification/gap_points", "gap", "high"),
            Metric("probes/d_mean_to_static_percent", "speaker from the mean of d %", "low"),
            Metric("reconstruction/random_nmse", "error of reconstruction", "low"),
        ],
    )
