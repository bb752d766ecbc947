# shellcheck shell=bash
# What the launchers have in common; sourced by them.

# usage FILE: prints the comment at the top of a script.
usage() {
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$1"
}

# print_help "$@": for --help or -h, prints the comment at the top of the script and ends it.
print_help() {
  case "${1:-}" in
    -h | --help)
      usage "$(dirname "${BASH_SOURCE[0]}")/${0##*/}" # $0 is not found after a cd
      exit 0
      ;;
  esac
}

# read_dry_run "$@": takes --dry-run out of the arguments, which are in $arguments then.
read_dry_run() {
  arguments=()
  local word
  for word in "$@"; do
    if [ "$word" = "--dry-run" ]; then DRY_RUN=1; else arguments+=("$word"); fi
  done
  if [ "${#arguments[@]}" -eq 0 ]; then arguments=(--help); fi
  print_help "${arguments[@]}"
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

# find_allocator: puts into $allocator what makes a process take its memory from jemalloc; nothing if
# there is none, or if LD_PRELOAD or MALLOC_CONF is set, be it to nothing. XLA asks for all memory of
# a step on the CPU at once; the C library would return it after each, and the system clear it again
# for the next. docs/scaling.md has the same words for other commands.
find_allocator() {
  allocator=()
  if [ -n "${LD_PRELOAD+set}${MALLOC_CONF+set}" ]; then return; fi
  if [[ "$(PATH="$PATH:/sbin" ldconfig -p 2>/dev/null)" == *libjemalloc.so.2* ]]; then
    # shellcheck disable=SC2034 # read by those who source this file
    allocator=(LD_PRELOAD=libjemalloc.so.2 "MALLOC_CONF=oversize_threshold:0,dirty_decay_ms:60000")
  fi
}
