"""Does a prior over both factors together beat one that takes them for independent?

Japanese vowels, 300 training steps instead of 1,000 for the sequence model, one for each seed, and
priors of the default size on its factors: `joint` is this package's transformer over s and d (500
steps), `reference` the released code's flat network and `independent` two of those, one for s and
one for d (2,000 quicker steps: with 500 they are far from trained). Fréchet distances are between
sampled and test sequences, of the factors themselves and of the features of a judge of speakers;
real training sequences are in `generation/train` of each record.
Runtime: 19 CPU minutes in all, 9 min 41 s on two cores (AMD EPYC) with --jobs=3.
Command: python -m diffsda_jax.study --study=studies/prior.py --out=runs/prior
"""

from diffsda_jax.study import Metric, Study

NUM_STEPS = {"joint": 500, "reference": 2_000, "independent": 2_000}


def get_study():
    """Three priors on each of three models."""
    return Study(
        title="Interdependent and independent priors",
        question="Are sampled sequences nearer to real ones if s and d are sampled together?",
        config="configs/japanese_vowels.py",
        common={
            "train.num_steps": 300,
            "train.checkpoint_every_steps": 300,
            "eval.parts": ("verification",),
            "eval.num_samples": 256,
            "eval.num_steps": 12,
            "eval.judge_steps": 200,
        },
        variants={
            form: {"prior.form": form, "prior.num_steps": num_steps}
            for form, num_steps in NUM_STEPS.items()
        },
        modes=("prior",),
        metrics=[
            Metric("generation/samples/frechet_factors", "Fréchet distance of factors", "low"),
            Metric("generation/samples/frechet_judge", "Fréchet distance (judge)", "low"),
            Metric("generation/given_s/static_kept_percent", "speaker kept, d sampled %", "high"),
            Metric("generation/samples/memorising_factors", "distance to training / test"),
        ],
    )
