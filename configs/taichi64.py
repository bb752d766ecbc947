"""TaiChi-HD at 64x64: people doing tai chi.

Source: DiffSDA (arXiv 2510.05717), hyper-parameters of table "video"; recurrence and schedule are
this project's defaults. Variant, after a colon: `reference` is the released code's form.
Data: TaiChi-HD (Siarohin et al. 2019), frames as `<root>/{train,test}/<video>/*.png`.
Command: python -m diffsda_jax.main --config=configs/taichi64.py --workdir=runs/taichi64
  --config.source.options.root=/path/to/taichi
Released weights: python -m diffsda_jax.convert --name=taichi --checkpoint=FILE --out=runs/taichi
AED and AKD need `--config.eval.networks.body.path` and `.landmarks.path`, see docs/metrics.md.
Time and result: not measured here (no data). Published: AED 0.326, AKD 2.143.
The paper trains 40 epochs, each visiting every video 150 times, at batch 16; `num_steps` below is
that for about 2,900 training videos (`--mode=plan` prints the epochs for yours).
"""

from diffsda_jax.config import check_variant, default_config, source_config, use_reference_form


def get_config(variant="default"):
    """The paper's hyper-parameters for TaiChi-HD."""
    check_variant(variant, ("default", "reference"))
    config = default_config()
    config.data.length = 10
    config.source = source_config("taichi", length=config.data.get_ref("length"))
    config.model.static_dim = 512
    config.model.dynamic_dim = 64
    config.model.hidden_dim = 1024
    config.noise.p_mean = -1.2
    config.noise.p_std = 1.2
    config.optimizer.learning_rate = 1e-4
    config.train.batch_size = 16
    config.train.num_steps = 1_087_500
    config.train.checkpoint_every_steps = 5_000
    config.train.eval_every_steps = 50_000
    config.eval.batch_size = 16
    config.eval.parts = ("reconstruction", "swap", "faces", "face_reconstruction")
    if variant == "reference":
        use_reference_form(config)
    return config
