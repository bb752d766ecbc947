"""Japanese vowels: nine speakers say /ae/; who speaks is static, the sound's course is dynamic.

Source: UCI Japanese Vowels (ships with the package), 270 training and 370 test utterances of 12
LPC cepstra a frame, resampled to 20 frames and scaled to a standard deviation of 0.5.
Command: python -m diffsda_jax.main --config=configs/japanese_vowels.py --workdir=runs/vowels
"""

from diffsda_jax.config import default_config, source_config


def get_config():
    """Sizes of the comparison with the PyTorch original, for a CPU."""
    config = default_config()
    config.source = source_config("japanese_vowels")
    config.data.length = 20
    config.data.length_mode = "resample"
    config.model.recurrence = "reference"
    config.model.static_dim = 16
    config.model.dynamic_dim = 2
    config.model.hidden_dim = 64
    config.model.width = 32
    config.model.encoder_width = 32
    config.optimizer.learning_rate = 1e-3
    config.train.batch_size = 64
    config.train.num_steps = 1_000
    return config
