"""How should noise levels be weighted in the loss?

Japanese vowels, 300 training steps instead of 1,000, so numbers are worse than in docs/results.md.
`edm` is the weight of Karras et al. 2022 (paper and default), `min_snr` that of Hang et al. 2023,
`uniform` none: the plain squared error, in which high noise counts most.
Runtime: 8 CPU minutes in all; expected: half of that on two idle cores (AMD EPYC).
Command: python -m diffsda_jax.study --study=studies/loss_weighting.py --out=runs/loss_weighting
"""

from diffsda_jax.diffusion.edm import WEIGHTINGS
from diffsda_jax.study import Metric, Study


def get_study():
    """Three models with three seeds."""
    return Study(
        title="Weighting of the loss",
        question="Do factors or reconstructions depend on how noise levels are weighted?",
        config="configs/japanese_vowels.py",
        common={
            "train.num_steps": 300,
            "train.checkpoint_every_steps": 300,
            "eval.parts": ("verification", "probes", "reconstruction"),
            "eval.num_swaps": 100,
            "eval.num_steps": 12,
        },
        variants={name: {"loss.weighting": name} for name in WEIGHTINGS},
        metrics=[
            Metric("verification/static_eer_percent", "static EER %", "low"),
            Metric("verification/dynamic_eer_percent", "dynamic EER %", "high"),
            Metric("verification/gap_points", "gap", "high"),
            Metric("reconstruction/random_nmse", "error of reconstruction", "low"),
            Metric("reconstruction/inverted_nmse", "error from the inverted noise", "low"),
        ],
    )
