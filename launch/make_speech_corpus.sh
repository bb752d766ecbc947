#!/usr/bin/env bash
# Makes a corpus of synthetic speech with espeak-ng, for trials where no recordings can be had:
# every voice says the same sentences, so that speaker and sentence are known and independent.
#   bash launch/make_speech_corpus.sh OUT_DIR [--voices N] [--sentences N]
# Default: 32 voices (24 to train, 8 to test; every fourth is a test voice) x 40 sentences.
# The layout is LibriSpeech's, FLAC of 16 kHz mono, read by the source `librispeech`:
#   OUT_DIR/{train-clean-360,test-clean}/<speaker>/1/<speaker>-1-<nnnn>.flac and .trans.txt
#   OUT_DIR/SPEAKERS.TXT names the voice, pitch, range and speed of each speaker
# The same call makes the same files; files that are there are kept, so it may be stopped and
# called again. PYTHON=/path/to/python uses that one, with the extra `audio`, and sets up nothing.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"
print_help "${@:---help}"
out="$(realpath -m "$1")"
cd "$(dirname "$0")/.."
if ! command -v espeak-ng >/dev/null; then
  if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    echo "installing espeak-ng ..."
    { apt-get update -qq && apt-get install -y -qq espeak-ng; } >/dev/null || true
  fi
  command -v espeak-ng >/dev/null || {
    echo "error: espeak-ng is missing: sudo apt-get install -y espeak-ng" >&2
    exit 1
  }
fi
if [ -z "${PYTHON:-}" ]; then
  # shellcheck source=launch/setup.sh
  source launch/setup.sh
  setup_environment audio
fi
"$PYTHON" - "$out" "${@:2}" <<'PY'
import argparse
import concurrent.futures
import functools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from diffsda_jax.data import audio_io
from diffsda_jax.data.sources.speech import SAMPLE_RATE_HZ

# Variant of the voice en-us, pitch (0 to 99), pitch range in percent, words per minute. The order
# is part of the corpus: a larger --voices adds speakers and moves none to the other split.
VOICES = """
m1 45 100 150; Alicia 50 120 165; klatt5 30 80 140; grandma 55 140 145;
belinda 60 100 175; kaukovalta 40 60 160; Marco 35 100 150; boris 25 120 170;
steph 45 160 185; Lee 20 80 145; travis 65 140 170; Andrea 35 100 160;
anika 70 120 180; AnxiousAndy 30 100 190; gustave 15 60 155; UniRobot 45 20 150;
f5 40 80 150; Andy 55 100 200; quincy 50 40 165; shelby 60 180 195;
Annie 25 100 170; miguel 70 120 180; aunty 30 140 140; norbert 65 80 150;
benjamin 60 60 175; victor 20 120 190; pablo 75 100 160; marcelo 55 180 135;
iven3 25 160 205; robosoft6 40 20 180; Gene2 10 140 170; sandro 80 100 145;
f1 75 120 200; m7 80 60 165; f3 50 100 130; robert 45 140 180;
m4 10 100 180; Hugo 60 40 145; whisperf 50 100 150; croak 50 80 170
""".replace("\n", " ").split(";")
VOICES = [voice.split() for voice in VOICES]
TEST_EVERY = 4
SENTENCES = """
The green kettle whistled before the rain began.
Seven tired painters shared one loaf of bread.
Put those heavy books beside the wooden chair.
My youngest cousin measures every fish he catches.
A cold wind pushed leaves across the yard.
She never joined the choir at our school.
Both ferries leave the harbour after midnight.
Why would anybody hide a drum in here?
Thirty zebras drank slowly from the muddy pool.
He fixed the garage door with yellow tape.
Our teacher drew a huge map of Asia.
Fresh ginger gives this soup a sharp taste.
The judge chose five words with great care.
Wash your hands before touching the lens.
Few visitors notice the tiny bronze owl.
An old violin lay under dusty blue cloth.
Could you carry this jug of orange juice?
Rough waves broke the captain's favourite cup.
They argued about pennies and forgot the bill.
The nurse whispered something pleasant about Thursday.
Long shadows cover the valley by four.
I thought both brothers knew the way home.
Measure the flour twice and the sugar once.
A clever fox ignored the open gate.
Yesterday the museum bought a very strange clock.
Please choose a quiet room facing the garden.
Her new boots squeaked on the polished floor.
Thunder woke the puppy sleeping near the stove.
Nobody enjoys waiting for a bus in March.
The baker folds warm dough around ripe cherries.
Young rangers watched smoke above the northern ridge.
Ask the lawyer which page he signed.
Bright copper wires cross beneath the bridge.
We usually walk along the beach at noon.
This machine cuts paper thinner than thread.
The boy hung his wet coat outside.
Two pilots described the same unusual cloud.
Each summer the village choir sings by moonlight.
Do not shake the jar of purple ink.
Good soil and patience will grow strong trees.
The mayor opened eight letters without a word.
Cheap umbrellas rarely survive a single storm.
His father repairs watches in a narrow shop.
Leave the silver key where Joyce found it.
Vague answers made the large audience laugh.
The train to Geneva stops here twice daily.
Every other rower lost his breath and rhythm.
Warm milk calms the goat in the shed.
""".strip().splitlines()
RMS, PEAK = 0.07, 0.95  # loudness must not tell the voices apart


def main():
    parser = argparse.ArgumentParser(prog="make_speech_corpus.sh")
    parser.add_argument("out", type=Path, metavar="OUT_DIR")
    parser.add_argument("--voices", type=int, default=32)
    parser.add_argument("--sentences", type=int, default=40)
    args = parser.parse_args()
    for name, value, low, high in (
        ("--voices", args.voices, TEST_EVERY, len(VOICES)),
        ("--sentences", args.sentences, 1, len(SENTENCES)),
    ):
        if not low <= value <= high:
            sys.exit(f"error: {name} {value}: use {low} to {high}")
    check_variants(args.voices)
    start, made = time.monotonic(), 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for place in range(args.voices):
            folder = folder_of(args.out, place)
            folder.mkdir(parents=True, exist_ok=True)
            job = functools.partial(speak, folder, VOICES[place])
            made += sum(pool.map(job, range(args.sentences)))
            write_texts(folder)
            passed = time.monotonic() - start
            progress = f"voice {place + 1} of {args.voices}, {made} files made, {passed:.0f} s"
            print(progress, flush=True)
    write_speakers(args.out)
    kept = args.voices * args.sentences - made
    print(f"{args.out}: {made} files made, {kept} kept")


def check_variants(count):
    """Stops when a variant is missing: espeak-ng would take the plain voice without a word."""
    listed = subprocess.run(
        ["espeak-ng", "--voices=variant"], check=True, capture_output=True, text=True
    ).stdout.split()
    missing = [voice[0] for voice in VOICES[:count] if f"!v/{voice[0]}" not in listed]
    if missing:
        sys.exit(
            f"error: this espeak-ng has no voice variants {', '.join(missing)}: version 1.51 does; "
            "install that one"
        )


def folder_of(out, place):
    subset = "test-clean" if place % TEST_EVERY == TEST_EVERY - 1 else "train-clean-360"
    return out / subset / str(1001 + place) / "1"


def file_of(folder, number):
    return folder / f"{folder.parent.name}-{folder.name}-{number:04d}.flac"


def speak(folder, voice, number):
    """Makes one file; returns whether it had to be made."""
    file = file_of(folder, number)
    if file.is_file():
        return False
    variant, pitch, pitch_range, speed = voice
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as temporary:
        # Into a file: the header that --stdout writes states a false length. At half the usual
        # amplitude: some variants are clipped at 100.
        wav, part = Path(temporary, "a.wav"), Path(temporary, "a.flac")
        options = ["-v", f"en-us+{variant}", "-p", pitch, "-s", speed, "-a", "50", "-z", "-m"]
        text = f'<prosody range="{pitch_range}%">{SENTENCES[number]}</prosody>'
        command = ["espeak-ng", *options, "-w", str(wav), text]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        samples, rate = audio_io.read_audio(wav)
        samples = audio_io.resample(samples, rate, SAMPLE_RATE_HZ)
        gain = min(RMS / np.sqrt(np.mean(samples**2)), PEAK / np.abs(samples).max())
        audio_io.import_soundfile().write(part, samples * gain, SAMPLE_RATE_HZ, subtype="PCM_16")
        part.replace(file)
    return True


def write_texts(folder):
    """Transcripts of the files that are there, those of earlier calls too."""
    lines = [
        f"{file_of(folder, number).stem} {sentence.upper().strip('.?')}\n"
        for number, sentence in enumerate(SENTENCES)
        if file_of(folder, number).is_file()
    ]
    name = f"{folder.parent.name}-{folder.name}.trans.txt"
    (folder / name).write_text("".join(lines))


def write_speakers(out):
    lines = [";ID | SUBSET | VOICE | PITCH | RANGE (percent) | SPEED (words per minute)\n"]
    for place, voice in enumerate(VOICES):
        folder = folder_of(out, place)
        if folder.is_dir():
            fields = [folder.parent.name, folder.parents[1].name, f"en-us+{voice[0]}", *voice[1:]]
            lines.append(" | ".join(fields) + "\n")
    (out / "SPEAKERS.TXT").write_text("".join(lines))


main()
PY
