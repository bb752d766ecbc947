"""Your own speech: a folder for each speaker with recordings in any common format.

Data: `<root>/<speaker>/**.{wav,flac,mp3,ogg}`, any rate and channel count; speakers are split by a
hash of their name (`--config.source.options.split_by=utterance` splits within each speaker
instead), or by folders `train/` and `test/`. Chunks of 0.8 s as 68 frames of 80 mel bins. Sizes of
the paper for TIMIT (arXiv 2510.05717), with a smaller denoiser. Variant, after a colon: `reference`
is the released code's form.
Command: python -m diffsda_jax.main --config=configs/speech_folder.py --workdir=runs/speech
  --config.source.options.root=/path/to/folder
Time and result: depend on the data.
"""

from diffsda_jax.config import check_variant, default_config, source_config, use_reference_form


def get_config(variant="default"):
    """Some hours of speech, one GPU."""
    check_variant(variant, ("default", "reference"))
    config = default_config()
    config.source = source_config("speech_folder")
    config.data.length = 68
    config.model.static_dim = 32
    config.model.dynamic_dim = 4
    config.model.hidden_dim = 128
    config.model.width = 64
    config.model.encoder_width = 128
    config.optimizer.learning_rate = 3e-4
    config.train.batch_size = 64
    config.train.num_steps = 50_000
    config.train.checkpoint_every_steps = 2_000
    config.eval.num_clips = 10_000
    config.eval.parts = ("reconstruction", "swap", "judge", "verification", "utterances")
    if variant == "reference":
        use_reference_form(config)
    return config
