"""Whether swapped speech can be understood: a recogniser chooses among the sentences of a corpus.

    pip install pocketsphinx
    python benchmarks/recognize_swaps.py --config=configs/librispeech.py:espeak \
        --workdir=runs/espeak --root=runs/espeak_corpus

For a trained run on a corpus whose speakers all say the same sentences. Swaps and reconstructions
are made audible as an evaluation does it (Griffin-Lim without a vocoder), and so are the recordings
that give voice and words: these are what the recogniser can reach at all. Printed is how often it
names the sentence, with its 95 % range; chance is one over the number of sentences. The recogniser
is PocketSphinx with its own English model, and a grammar of these sentences.
"""

import argparse
import re

import numpy as np
from scipy.signal import resample_poly

from diffsda_jax import config as configuration
from diffsda_jax import eval_setup
from diffsda_jax import experiment as experiments
from diffsda_jax.evals.context import Context
from diffsda_jax.evals.interface import encode_clips
from diffsda_jax.evals.sounds import make_sounds, swapped_recordings
from diffsda_jax.pipeline import DiffSDA

RATE_HZ = 16_000
KINDS = {  # of a sound: whose sentence it says
    "voice": "recordings that give the voice",
    "words": "recordings that give the words",
    "reconstruction": "reconstructions of these",
    "result": "swaps",
}


def make_context(config, workdir: str) -> tuple[Context, experiments.Experiment]:
    """The test split, its factors, and the settings of the config."""
    experiment = experiments.build(config)
    model = DiffSDA.from_checkpoint(workdir, weights=config.eval.weights)
    test = experiments.load_split(experiment, "test", config.eval.num_clips)
    context = Context(
        model=model,
        kind="series",
        train=test,
        test=test,
        train_factors=None,
        test_factors=encode_clips(model, test["x"], test["length"]),
        judge=None,
        settings=experiments.eval_settings(config),
        readers=test,
        trial=np.arange(len(test["x"])),
    )
    return context, experiment


def plain(sentence: str) -> str:
    """Lower-case words and nothing else."""
    return " ".join(re.sub(r"[^a-z' ]", " ", sentence.lower()).split())


def make_recognizer(sentences: list[str]):
    """A function from a waveform in [-1, 1] at 16 kHz to one of the sentences, or None."""
    from pocketsphinx import Decoder

    decoder = Decoder(samprate=RATE_HZ, loglevel="FATAL")
    words = {word for sentence in sentences for word in plain(sentence).split()}
    unknown = {word for word in words if decoder.lookup_word(word) is None}
    heard = {  # names that its dictionary lacks are left out of the sentences
        " ".join(word for word in plain(sentence).split() if word not in unknown): sentence
        for sentence in sentences
    }
    grammar = f"#JSGF V1.0; grammar corpus; public <sentence> = {' | '.join(heard)} ;"
    decoder.add_jsgf_string("corpus", grammar)
    decoder.activate_search("corpus")

    def recognize(samples: np.ndarray) -> str | None:
        samples = np.pad(samples / max(np.abs(samples).max(), 1e-9), RATE_HZ // 5)
        decoder.start_utt()
        decoder.process_raw((20_000 * samples).astype(np.int16).tobytes(), full_utt=True)
        decoder.end_utt()
        found = decoder.hyp()
        return None if found is None else heard.get(found.hypstr.strip())

    return recognize


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="of the run, with its variant")
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--root", required=True, help="of the corpus")
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--start", default="zero", help="start noise of swaps, see eval.start")
    options = parser.parse_args()
    config = configuration.load_config(options.config)
    config.source.options.root, config.eval.start = options.root, options.start
    context, experiment = make_context(config, options.workdir)
    names = experiment.element.dynamic_names
    if not names:
        raise SystemExit(f"recognize_swaps: no sentence of {options.root} has several speakers.")
    voices, words = swapped_recordings(context, options.swaps)
    sound = eval_setup.make_sound(experiment)
    sounds = make_sounds(context, sound, options.swaps)
    recognize = make_recognizer(list(names))
    print(f"{len(names)} sentences, chance {100 / len(names):.1f} %")
    for kind, what in KINDS.items():
        said = voices if kind == "voice" else words
        right = []
        for number, chunks in enumerate(said):
            wave = resample_poly(sounds[f"swap_{number}/{kind}"], RATE_HZ, sound.sample_rate_hz)
            right.append(recognize(wave) == names[context.test["dynamic_label"][chunks[0]]])
        share = 100 * np.mean(right)
        spread = 196 * np.sqrt(np.mean(right) * (1 - np.mean(right)) / len(right))
        print(f"{what}: {share:.0f} ± {spread:.0f} % of {len(right)}")


if __name__ == "__main__":
    main()
