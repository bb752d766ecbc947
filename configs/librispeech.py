"""LibriSpeech: read speech; the voice is static, the words are dynamic.

Source: `<root>/<subset>/<speaker>/<chapter>/*.flac`, train-clean-360 and test-clean; chunks of
0.8 s as 68 frames of 80 mel bins. Sizes and rates of the paper (arXiv 2510.05717, appendix).
Variants, after a colon: `reference` is the released code's form (its recurrence, learning-rate
schedule, raw weights, and silence at the end of recordings that counts); `espeak` is small, for a
CPU and the corpus that `bash launch/make_speech_corpus.sh corpus` makes, with d read from centred
frames and noise on the encoder's input, which the paper does not have; `espeak_reference` is the
released code's form of the same size, with the paper's width of d.
Command: python -m diffsda_jax.main --config=configs/librispeech.py --workdir=runs/librispeech
  --config.source.options.root=/path/to/LibriSpeech
Result: published (not measured here): static EER 11.02 %, dynamic EER 45.94 %, gap 34.93.
Command of `espeak`, with the corpus and all: bash launch/speech_demo.sh
Result of `espeak` (five seeds, 8 to 10 minutes on one CPU core): static EER 3.1 +- 0.7 %, dynamic
EER 50.0 +- 0.3 %, gap 46.9 +- 0.6; linear probes: sentence from d 99 % (chance 2.5), speaker from
the mean of d 13 % (chance 12.5); 93 % of swaps have a mel-cepstrum nearer to the donor of the
voice. `espeak_reference` (five seeds): 1.0, 43.5 and 42.5; 86 % and 39 %; 37 % of swaps.
"""

from diffsda_jax.config import check_variant, default_config, source_config, use_reference_form

VARIANTS = ("default", "reference", "espeak", "espeak_reference")


def get_config(variant="default"):
    """200 epochs of train-clean-360 at batch 128, or minutes on a CPU."""
    check_variant(variant, VARIANTS)
    config = default_config()
    config.source = source_config("librispeech")
    config.data.length = 68
    config.model.static_dim = 32
    config.model.dynamic_dim = 2
    config.model.hidden_dim = 256
    config.model.width = 64
    config.model.encoder_width = 128
    config.optimizer.learning_rate = 1e-3
    config.train.batch_size = 128
    config.train.num_steps = 2_500_000
    config.train.checkpoint_every_steps = 10_000
    config.eval.num_clips = 30_000
    config.eval.parts = ("reconstruction", "swap", "judge", "verification", "utterances")
    if variant.startswith("espeak"):
        config.model.hidden_dim = 64
        config.model.width = 64
        config.model.encoder_width = 32
        config.optimizer.warmup_steps = 50
        config.train.batch_size = 32
        config.train.num_steps = 1_200
        config.train.checkpoint_every_steps = 200
        config.eval.num_steps = 16
        config.eval.num_swaps = 100
        config.eval.num_train_clips = 1_500
    if variant.endswith("reference"):
        use_reference_form(config)
    elif variant.startswith("espeak"):
        config.model.dynamic_dim = 8
        config.model.center_dynamic = True
        config.model.precision = "bfloat16"
        config.loss.encoder_noise = 0.4
        config.eval.start = "zero"
    return config
