"""Your own videos: a folder of mp4, webm, mov, gif, or of folders of frames.

Source: sizes between the paper's MUG and TaiChi-HD settings (arXiv 2510.05717).
Data: `<root>/**/*.{mp4,webm,mov,gif}` or `<root>/**/<clip>/*.{png,jpg}`; folders `train/` and
`test/` are taken as the splits, else a hash of each path decides. With
`--config.source.options.label_from=parent` the folder around a clip names who it shows, and the
evaluation adds probes, judge and verification.
Command: python -m diffsda_jax.main --config=configs/video_folder.py --workdir=runs/mine
  --config.source.options.root=/path/to/videos
Variants, after a colon: `small` is for the CPU of a laptop, 32x32 with the widths and options of
configs/digits.py, to see how it goes. For 256x256 frames: `latents` trains in the latents of a
frame autoencoder (32x32x4 of a frame), which `frames` makes of the videos. Commands, one after the
other; the second, which fine-tunes the autoencoder to your videos, may be left out, or else gives
its workdir to the following in place of runs/vq_f8:
  python -m diffsda_jax.convert --checkpoint=/path/to/vq-f8.ckpt --out=runs/vq_f8
  python -m diffsda_jax.main --config=configs/video_folder.py:frames --mode=first_stage
    --workdir=runs/my_first_stage --config.source.options.root=/path/to/videos
    --config.first_stage.checkpoint=runs/vq_f8
  python -m diffsda_jax.main --config=configs/video_folder.py:frames --mode=latents
    --workdir=runs/my_latents --config.source.options.root=/path/to/videos
    --config.first_stage.checkpoint=runs/vq_f8
  python -m diffsda_jax.main --config=configs/video_folder.py:latents --workdir=runs/mine256
    --config.source.options.root=runs/my_latents/latents
    --config.first_stage.checkpoint=runs/vq_f8
Time and result: depend on the data; see docs/data.md.
"""

from diffsda_jax.config import check_variant, default_config, source_config


def get_config(variant="default"):
    """64x64 frames, 10 of them, for one GPU; a small model; or latents of 256x256 frames."""
    check_variant(variant, ("default", "small", "frames", "latents"))
    config = default_config()
    config.data.length = 10
    length = config.data.get_ref("length")
    if variant == "latents":
        config.source = source_config("latents", length=length, stride=2, test_stride=2)
    else:
        size = 256 if variant == "frames" else 64
        config.source = source_config("video_folder", length=length, stride=2, size=size)
    config.model.static_dim = 256
    config.model.dynamic_dim = 16
    config.model.hidden_dim = 256
    if variant in ("default", "small"):
        config.noise.p_mean = -1.2
        config.noise.p_std = 1.2
    else:
        config.model.hidden_dim = 512
        config.model.channels = 128
        config.model.encoder_channels = 128
    config.optimizer.learning_rate = 1e-4
    config.train.batch_size = 16
    config.train.num_steps = 100_000
    config.train.eval_every_steps = 20_000
    config.eval.num_clips = 128
    config.eval.num_train_clips = 512
    config.eval.num_swaps = 64
    config.eval.batch_size = 16
    if variant == "frames":  # --mode=first_stage learns from single frames
        config.data.length = 1
        config.optimizer.learning_rate = 4e-5
        config.train.batch_size = 8
        config.train.num_steps = 50_000
    if variant == "small":
        use_small_model(config)
    return config


def use_small_model(config):
    """32x32 frames, 8 of them, and the widths and options of configs/digits.py."""
    config.source.options.size = 32
    config.source.options.stride = 1  # short clips will do
    config.data.length = 8
    config.model.static_dim = 32
    config.model.dynamic_dim = 4
    config.model.hidden_dim = 128
    config.model.dynamic_activation = "tanh"
    config.loss.dynamic_noise = 0.1
    config.model.channels = 16
    config.model.encoder_channels = 16
    config.model.encoder_pooling = True
    config.model.template_channels = 4
    config.model.channel_mults = (1, 2, 2)
    config.noise.p_mean = 0.4
    config.noise.p_std = 1.2
    config.optimizer.learning_rate = 1e-3
    config.optimizer.ema_half_life_examples = 500.0
    config.train.batch_size = 4
    config.train.num_steps = 300
    config.train.eval_every_steps = 0
    config.train.checkpoint_every_steps = 250
    config.eval.num_steps = 12
    config.eval.num_swaps = 16
    config.eval.num_clips = 32
    config.eval.num_train_clips = 64
