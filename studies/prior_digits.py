"""The study of priors (studies/prior.py) on moving digits at full size, for a GPU.

The sequence model and the priors are trained as configs/digits.py and `prior` say, but for the flat
networks, which get twice the steps of the joint prior. Fréchet distances are between sampled and
test sequences, of the factors themselves and of the features of a judge of digits and motions.
Runtime: not measured; not run in full.
Command: python -m diffsda_jax.study --study=studies/prior_digits.py --out=runs/prior_digits
"""

from diffsda_jax.study import Metric, Study

NUM_STEPS = {"joint": 3_000, "reference": 6_000, "independent": 6_000}


def get_study():
    """Three priors on each of three models."""
    return Study(
        title="Interdependent and independent priors on digits",
        question="Are sampled sequences nearer to real ones if s and d are sampled together?",
        config="configs/digits.py",
        common={
            "train.checkpoint_every_steps": 1_000,
            "eval.parts": ("reconstruction", "swap", "judge", "probes"),
            "eval.num_samples": 256,
        },
        variants={
            form: {"prior.form": form, "prior.num_steps": num_steps}
            for form, num_steps in NUM_STEPS.items()
        },
        modes=("prior",),
        metrics=[
            Metric("generation/samples/frechet_factors", "Fréchet distance of factors", "low"),
            Metric("generation/samples/frechet_judge", "Fréchet distance (judge)", "low"),
            Metric("generation/given_s/static_kept_percent", "digit kept, d sampled %", "high"),
            Metric("generation/given_d/dynamic_kept_percent", "motion kept, s sampled %", "high"),
            Metric("generation/samples/memorising_factors", "distance to training / test"),
        ],
    )
