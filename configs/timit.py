"""TIMIT: read sentences of 630 speakers; the voice is static, the words are dynamic.

Source: `<root>/{TRAIN,TEST}/DR*/<speaker>/*.WAV` (LDC93S1), core test set of 24 speakers, SA
sentences left out; chunks of 0.8 s as 68 frames of 80 mel bins. Sizes and rates of the paper (arXiv
2510.05717, appendix). Variant, after a colon: `reference` is the released code's form.
Command: python -m diffsda_jax.main --config=configs/timit.py --workdir=runs/timit
  --config.source.options.root=/path/to/TIMIT
Result: published (not measured here): static EER 4.43 %, dynamic EER 46.72 %, gap 42.29.
"""

from diffsda_jax.config import check_variant, default_config, source_config, use_reference_form


def get_config(variant="default"):
    """About 750 epochs at batch 128."""
    check_variant(variant, ("default", "reference"))
    config = default_config()
    config.source = source_config("timit")
    config.data.length = 68
    config.model.static_dim = 32
    config.model.dynamic_dim = 4
    config.model.hidden_dim = 128
    config.model.width = 256
    config.model.encoder_width = 128
    config.train.batch_size = 128
    config.train.num_steps = 100_000
    config.train.checkpoint_every_steps = 2_000
    config.eval.num_clips = 30_000
    config.eval.parts = ("reconstruction", "swap", "judge", "verification", "utterances")
    if variant == "reference":
        use_reference_form(config)
    return config
