"""How many evaluations of the network does a sample need, and with which solver?

Japanese vowels, 300 training steps instead of 1,000. The variants differ in the evaluation only, so
one model is trained for each seed. `heun` is the paper's, at most 63 evaluations; the others
evaluate once a step. Reconstructions start from random noise (what the factors hold) or from the
inverted noise, which the same solver finds first.
Runtime: 10 CPU minutes in all; expected: half of that on two idle cores (AMD EPYC).
Command: python -m diffsda_jax.study --study=studies/evaluations.py --out=runs/evaluations
"""

from diffsda_jax.diffusion.samplers import SamplerSpec
from diffsda_jax.study import Metric, Study

SAMPLERS = [
    SamplerSpec(solver, num_steps)
    for solver, steps in {
        "heun": (4, 8, 32),
        "euler": (8, 16, 63),
        "dpmpp_2m": (8, 16, 63),
    }.items()
    for num_steps in steps
]


def get_study():
    """Nine evaluations of three models."""
    names = {f"{s.solver}, {s.evaluations} evaluations": s for s in SAMPLERS}
    return Study(
        title="Solvers and evaluations",
        question="How few evaluations are enough for reconstructions and swaps?",
        config="configs/japanese_vowels.py",
        common={
            "train.num_steps": 300,
            "train.checkpoint_every_steps": 300,
            "eval.parts": ("reconstruction", "swap"),
            "eval.num_swaps": 100,
            "eval.judge_steps": 200,
        },
        variants={
            name: {"eval.solver": s.solver, "eval.num_steps": s.num_steps}
            for name, s in names.items()
        },
        x={name: s.evaluations for name, s in names.items()},
        x_label="evaluations",
        lines={name: s.solver for name, s in names.items()},
        metrics=[
            Metric("reconstruction/random_nmse", "error of reconstruction", "low"),
            Metric("reconstruction/inverted_nmse", "error from the inverted noise", "low"),
            Metric("swap/static_kept_percent", "speaker kept in swaps %", "high"),
        ],
    )
