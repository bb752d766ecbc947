"""ETTh1: an electricity transformer; the level of a month is static, its loads are dynamic.

Source: `ETTh1.csv` (date, six loads, oil temperature), hourly, cut into windows of 672 hours that
begin every 24. Sizes and rates of the paper (arXiv 2510.05717, appendix); every sequence is encoded
once and gets 10 noisy copies. Variant, after a colon: `reference` is the released code's form,
whose training labels come from another shuffle than the signals.
Command: python -m diffsda_jax.main --config=configs/etth1.py --workdir=runs/etth1
  --config.source.options.path=/path/to/ETTh1.csv
Result: published (not measured here): oil temperature from (s, d), MAE 9.89.
"""

from diffsda_jax.config import check_variant, default_config, source_config, use_reference_form


def get_config(variant="default"):
    """About 200 epochs at batch 10."""
    check_variant(variant, ("default", "reference"))
    config = default_config()
    config.source = source_config("etth1")
    config.data.length = 672
    config.model.static_dim = 16
    config.model.dynamic_dim = 4
    config.model.hidden_dim = 512
    config.model.width = 128
    config.model.encoder_width = 256
    config.model.precision = "bfloat16"
    config.loss.noise_draws = 10
    config.train.batch_size = 10
    config.train.num_steps = 8_000
    config.eval.num_swaps = 32
    config.eval.parts = ("tasks", "reconstruction")
    if variant == "reference":
        use_reference_form(config)
        config.source.options.cyclic_shift = "reference"
        config.source.options.labels = "reference"
    return config
