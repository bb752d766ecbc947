"""MUG facial expressions at 64x64: six expressions of 52 people.

Source: DiffSDA (arXiv 2510.05717), hyper-parameters of table "video"; recurrence and schedule are
this project's defaults. Variants, after a colon: `reference` and `small` are the released code's
form, as of its weights `mug` and `mug_small`; the first samples in 32 steps, the second in the 36
(71 evaluations) of the paper. What else differs between the two is not known here: sizes that the
weights have otherwise are taken from their file and named when they are converted.
Data: the MUG database (by request from its authors), frames as
`<root>/<train|test>/<0..5>/<userXXX_takeYYY_ZZ>/*.jpg`.
Command: python -m diffsda_jax.main --config=configs/mug64.py --workdir=runs/mug64
  --config.source.options.root=/path/to/mug
Released weights: python -m diffsda_jax.convert --name=mug_small --checkpoint=FILE --out=runs/mug
AED and AKD need `--config.eval.networks.identity.path` and `.landmarks.path`, see docs/metrics.md.
Time and result: not measured here (no data). Published: AED 0.751, AKD 0.802, judge 81.15 %.
The paper trains 1,600 epochs at batch 8; `num_steps` below is that for about 2,800 training clips
(`--mode=plan` prints the epochs for yours).
"""

from diffsda_jax.config import check_variant, default_config, source_config, use_reference_form


def get_config(variant="default"):
    """The paper's hyper-parameters for MUG."""
    check_variant(variant, ("default", "reference", "small"))
    config = default_config()
    config.data.length = 15
    config.source = source_config("mug", length=config.data.get_ref("length"))
    config.model.static_dim = 256
    config.model.dynamic_dim = 64
    config.model.hidden_dim = 128
    config.noise.p_mean = -1.2
    config.noise.p_std = 1.2
    config.optimizer.learning_rate = 1e-4
    config.train.batch_size = 8
    config.train.num_steps = 560_000
    config.train.checkpoint_every_steps = 5_000
    config.train.eval_every_steps = 50_000
    config.eval.num_steps = 32 if variant == "reference" else 36
    config.eval.batch_size = 8
    config.eval.parts += ("faces", "face_reconstruction")
    if variant != "default":
        use_reference_form(config)
    return config
