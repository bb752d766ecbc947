#!/usr/bin/env bash
# Sets up .venv, makes a corpus of 32 espeak-ng voices x 40 sentences in LibriSpeech's layout, trains
# on 24 of the voices, evaluates on the other 8, says where metrics and WAV files are, and last the
# path of one page with players for them. CORPUS and WORKDIR name other folders than
# runs/espeak_corpus and runs/espeak; a second call goes on from there.
#   bash launch/speech_demo.sh [--config.train.num_steps=200 ...]
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/common.sh
source launch/common.sh
print_help "$@"
# shellcheck source=launch/setup.sh
source launch/setup.sh
setup_environment audio
corpus="${CORPUS:-runs/espeak_corpus}" workdir="${WORKDIR:-runs/espeak}"
PYTHON="$PYTHON" bash launch/make_speech_corpus.sh "$corpus"
config=(--config=configs/librispeech.py:espeak --workdir="$workdir"
  --config.source.options.root="$corpus" "$@")
find_allocator
env ${allocator[@]+"${allocator[@]}"} "$PYTHON" -m diffsda_jax.main "${config[@]}"
echo
echo "metrics and sounds: $workdir/eval"
find "$workdir/eval" -name '*.wav' | sort
"$PYTHON" -m diffsda_jax.main "${config[@]}" --mode=report
