# shellcheck shell=bash
# What the launchers have in common; sourced by them.

# usage FILE: prints the comment at the top of a script.
usage() {
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$1"
}

# read_dry_run "$@": takes --dry-run out of the arguments, which are in $arguments then.
read_dry_run() {
  arguments=()
  local word
  for word in "$@"; do
    if [ "$word" = "--dry-run" ]; then DRY_RUN=1; else arguments+=("$word"); fi
  done
  if [ "${#arguments[@]}" -eq 0 ] || [ "${arguments[0]}" = "--help" ]; then
    usage "$0"
    exit 0
  fi
}

# quoted WORDS...: the words as one line that a shell reads as the same words.
quoted() {
  local line
  printf -v line '%q ' "$@"
  printf '%s' "${line% }"
}

# run WORDS...: runs a command, or prints it if DRY_RUN is set.
run() {
  if [ -n "${DRY_RUN:-}" ]; then
    quoted "$@"
    echo
  else
    "$@"
  fi
}

# needs VARIABLE WHAT: ends with an error if a variable is not set.
needs() {
  if [ -z "${!1:-}" ]; then
    echo "error: set $1, $2; see $0 --help" >&2
    exit 2
  fi
}
