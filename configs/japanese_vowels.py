"""Japanese vowels: nine speakers say /ae/; who speaks is static, the sound's course is dynamic.

Source: UCI Japanese Vowels (ships with the package), 270 training and 370 test utterances of 12
LPC cepstra a frame, resampled to 20 frames and scaled to a standard deviation of 0.5.
Variants, after a colon: `original` is the protocol that the PyTorch original was measured with (its
recurrence, no bottleneck on d, raw weights), `original_lstm` the same with the paper's causal
recurrence, `reference` this file's settings with the original's recurrence.
Command: python -m diffsda_jax.main --config=configs/japanese_vowels.py --workdir=runs/vowels
Result over 5 seeds (2 shared CPU cores, 90 s to 200 s a run): static EER 9.9 +- 0.5 %, dynamic EER
46.9 +- 0.6 %, gap 37.0 +- 1.1; `reference`: 9.6 +- 0.3, 46.2 +- 0.9, 36.6 +- 1.1.
"""

from diffsda_jax.config import check_variant, default_config, source_config

VARIANTS = ("default", "reference", "original", "original_lstm")


def get_config(variant="default"):
    """Sizes of the comparison with the PyTorch original, for a CPU."""
    check_variant(variant, VARIANTS)
    config = default_config()
    config.source = source_config("japanese_vowels")
    config.data.length = 20
    config.data.length_mode = "resample"
    config.model.recurrence = "reference" if variant in ("reference", "original") else "lstm"
    config.model.static_dim = 16
    config.model.dynamic_dim = 2
    config.model.hidden_dim = 64
    config.model.width = 32
    config.model.encoder_width = 32
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 0
    config.optimizer.ema_half_life_examples = 0.0
    config.train.batch_size = 64 if variant.startswith("original") else 32
    config.train.num_steps = 1_000
    config.train.checkpoint_every_steps = 200
    config.prior.num_steps = 1_000
    if not variant.startswith("original"):
        config.model.dynamic_activation = "tanh"
        config.loss.dynamic_noise = 0.4
        config.loss.encoder_noise = 0.4
        config.optimizer.ema_half_life_examples = 2_200.0  # a decay of 0.99 a step
    return config
