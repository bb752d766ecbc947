# shellcheck shell=bash
# Makes .venv from the project's own files, once; sourced by the demos and test.sh.
#
# setup_environment EXTRAS: creates or updates .venv and puts its python into $PYTHON.
# It installs only when the files changed or an extra is missing, and then also every extra of
# earlier calls; .venv/.installed holds the state of the files and these extras, a line each.

setup_environment() {
  local extras="$1" python="${PYTHON_FOR_VENV:-python3}" venv="${VENV:-.venv}" files earlier record
  "$python" - <<'PY' || return 1
import sys
if sys.version_info < (3, 11):
    sys.exit(f"error: Python {sys.version.split()[0]} is too old; 3.11 or newer is needed "
             "(PYTHON_FOR_VENV=/path/to/python3.12 names another)")
PY
  files="$(cat setup.cfg pyproject.toml constraints.txt | cksum) $("$python" -V)"
  earlier="$(sed -n 2p "$venv/.installed" 2>/dev/null || true)"
  extras="$(echo "$earlier,$extras" | tr ',' '\n' | sed '/^$/d' | sort -u | paste -sd, -)"
  record="$files"$'\n'"$extras"
  PYTHON="$venv/bin/python"
  if [ -x "$PYTHON" ] && [ "$(cat "$venv/.installed" 2>/dev/null)" = "$record" ]; then
    return 0
  fi
  echo "setting up $venv ..."
  [ -x "$PYTHON" ] || "$python" -m venv "$venv" || return 1
  # uv is several times faster; pip does it where uv cannot.
  "$PYTHON" -m pip install --quiet --disable-pip-version-check uv 2>/dev/null || true
  if ! "$PYTHON" -m uv pip install --quiet --python "$PYTHON" -c constraints.txt -e ".[$extras]" 2>/dev/null; then
    "$PYTHON" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$extras]" || return 1
  fi
  echo "$record" > "$venv/.installed"
}
