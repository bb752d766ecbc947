"""Your own videos: a folder of mp4, webm, mov, gif, or of folders of frames.

Source: sizes between the paper's MUG and TaiChi-HD settings (arXiv 2510.05717).
Data: `<root>/**/*.{mp4,webm,mov,gif}` or `<root>/**/<clip>/*.{png,jpg}`; folders `train/` and
`test/` are taken as the splits, else a hash of each path decides. With
`--config.source.options.label_from=parent` the folder around a clip names who it shows, and the
evaluation adds probes, judge and verification.
Command: python -m diffsda_jax.main --config=configs/video_folder.py --workdir=runs/mine
  --config.source.options.root=/path/to/videos
Time and result: depend on the data; see README, "Train on your own videos".
"""

from diffsda_jax.config import default_config, source_config


def get_config():
    """64x64 frames, 10 of them, for one GPU."""
    config = default_config()
    config.data.length = 10
    config.source = source_config("video_folder", length=config.data.get_ref("length"), stride=2)
    config.model.static_dim = 256
    config.model.dynamic_dim = 16
    config.model.hidden_dim = 256
    config.noise.p_mean = -1.2
    config.noise.p_std = 1.2
    config.optimizer.learning_rate = 1e-4
    config.train.batch_size = 16
    config.train.num_steps = 100_000
    config.train.eval_every_steps = 20_000
    config.eval.num_clips = 128
    config.eval.num_train_clips = 512
    config.eval.num_swaps = 64
    config.eval.batch_size = 16
    return config
