"""Beijing Air Quality: a month at a station is static, the weather's course is dynamic.

Source: `<root>/PRSA_Data_<station>_20130301-20170228.csv` of 12 stations (UCI 501); 672 hours of
each month, 10 features, test = 2016. Sizes and rates of the paper (arXiv 2510.05717, appendix);
every sequence is encoded once and gets 10 noisy copies. Variant, after a colon: `reference` is the
released code's form.
Command: python -m diffsda_jax.main --config=configs/air_quality.py --workdir=runs/air_quality
  --config.source.options.root=/path/to/PRSA_Data_20130301-20170228
Result: published (not measured here): month from s, accuracy 69.2 %.
"""

from diffsda_jax.config import check_variant, default_config, source_config, use_reference_form


def get_config(variant="default"):
    """About 200 epochs at batch 10."""
    check_variant(variant, ("default", "reference"))
    config = default_config()
    config.source = source_config("air_quality")
    config.data.length = 672
    config.model.static_dim = 16
    config.model.dynamic_dim = 4
    config.model.hidden_dim = 512
    config.model.width = 256
    config.model.encoder_width = 128
    config.model.precision = "bfloat16"
    config.loss.noise_draws = 10
    config.train.batch_size = 10
    config.train.num_steps = 7_500
    config.eval.num_steps = 16
    config.eval.num_swaps = 32
    config.eval.parts = ("tasks", "reconstruction", "swap", "one_factor")
    if variant == "reference":
        use_reference_form(config)
        config.source.options.cyclic_shift = "reference"
    return config
