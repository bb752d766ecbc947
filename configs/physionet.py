"""PhysioNet 2012: two days in intensive care; the patient is static, the course is dynamic.

Source: `<root>/set-a/*.txt` and `<root>/Outcomes-a.txt` of the Challenge 2012; 80 steps of 10 vital
signs, most of them missing at most times: the encoder sees which. Sizes and rates of the paper
(arXiv 2510.05717, appendix); every sequence is encoded once and gets 10 noisy copies. Variant,
after a colon: `reference` is the released code's form, whose encoder does not see the mask.
Command: python -m diffsda_jax.main --config=configs/physionet.py --workdir=runs/physionet
  --config.source.options.root=/path/to/challenge-2012
Result: published (not measured here): mortality from (s, d), AUPRC 0.50, AUROC 0.87; type of
intensive care unit from s, accuracy 64.6 %.
"""

from diffsda_jax.config import check_variant, default_config, source_config, use_reference_form


def get_config(variant="default"):
    """About 200 epochs at batch 30."""
    check_variant(variant, ("default", "reference"))
    config = default_config()
    config.source = source_config("physionet")
    config.data.length = 80
    config.model.static_dim = 24
    config.model.dynamic_dim = 2
    config.model.hidden_dim = 96
    config.model.width = 256
    config.model.encoder_width = 96
    config.model.precision = "bfloat16"
    config.loss.noise_draws = 10
    config.optimizer.learning_rate = 5e-5
    config.train.batch_size = 30
    config.train.num_steps = 16_000
    config.eval.num_steps = 24
    config.eval.num_clips = 2_000
    config.eval.num_train_clips = 10_000
    config.eval.num_swaps = 64
    config.eval.parts = ("tasks", "probes", "reconstruction", "swap", "one_factor")
    if variant == "reference":
        use_reference_form(config)
        config.source.options.cyclic_shift = "reference"
    return config
