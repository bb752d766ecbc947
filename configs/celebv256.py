"""CelebV-HQ at 256x256 in the latents of a frame autoencoder: who is seen, and how they move.

Source: DiffSDA (arXiv 2510.05717), hyper-parameters of table "video"; recurrence and schedule are
this project's defaults. Variants, after a colon: `reference` is the released code's form; `frames`
is the same data in pixels, for fine-tuning the autoencoder and making the latents.
Data: videos of CelebV-HQ as `<root>/35666/*.mp4` and `<root>/celebvhq_info.json`; 80/20 by clip,
seed 42. Videos that are not cropped to the face need a detector of faces
(`--config.source.options.detector=module:callable`). The autoencoder is latent-diffusion's VQ f8
(codebook 256x4), which makes 32x32x4 of a frame.
Commands, one after the other; the second, which fine-tunes the autoencoder to these faces, may be
left out, or else gives its workdir to the following in place of runs/vq_f8:
  python -m diffsda_jax.convert --checkpoint=/path/to/vq-f8.ckpt --out=runs/vq_f8
  python -m diffsda_jax.main --config=configs/celebv256.py:frames --mode=first_stage
    --workdir=runs/celebv_first_stage --config.source.options.root=/path/to/celebv_hq
    --config.first_stage.checkpoint=runs/vq_f8
  python -m diffsda_jax.main --config=configs/celebv256.py:frames --mode=latents
    --workdir=runs/celebv_latents --config.source.options.root=/path/to/celebv_hq
    --config.first_stage.checkpoint=runs/vq_f8
  python -m diffsda_jax.main --config=configs/celebv256.py --workdir=runs/celebv256
    --config.source.options.root=runs/celebv_latents/latents
    --config.first_stage.checkpoint=runs/vq_f8
Released weights: python -m diffsda_jax.convert --name=celebv --checkpoint=FILE --out=runs/celebv
AED and AKD need `--config.eval.networks.identity.path` and `.landmarks.path`, see docs/metrics.md.
Time and result: not measured here (no data). Published: AED 0.540, AKD 6.932.
`num_steps` is the paper's 450 epochs of about 28,500 clips at batch 16.
"""

from diffsda_jax.config import check_variant, default_config, source_config, use_reference_form


def get_config(variant="default"):
    """The paper's hyper-parameters for CelebV-HQ."""
    check_variant(variant, ("default", "reference", "frames"))
    config = default_config()
    config.data.length = 10
    length = config.data.get_ref("length")
    if variant == "frames":
        config.source = source_config("celebv_hq", length=length, stride=2)
    else:
        config.source = source_config("latents", length=length, stride=2, test_stride=2)
    config.model.static_dim = 1024
    config.model.dynamic_dim = 16
    config.model.hidden_dim = 1024
    config.model.channels = 192
    config.model.encoder_channels = 192
    config.optimizer.learning_rate = 1e-4
    config.train.batch_size = 16
    config.train.num_steps = 802_500
    config.train.checkpoint_every_steps = 5_000
    config.train.eval_every_steps = 50_000
    config.eval.batch_size = 16
    config.eval.parts = ("reconstruction", "swap", "faces", "face_reconstruction")
    if variant == "frames":  # --mode=first_stage learns from single frames
        config.data.length = 1
        config.optimizer.learning_rate = 4e-5
        config.train.batch_size = 8
        config.train.num_steps = 50_000
    if variant == "reference":
        use_reference_form(config)
    return config
