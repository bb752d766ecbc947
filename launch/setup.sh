# Makes .venv from the project's own files, once; sourced by demo.sh and test.sh.
#
# setup_environment EXTRAS: creates or updates .venv and puts its python into $PYTHON.
# A second call with the same files and extras installs nothing.

setup_environment() {
  local extras="$1" python="${PYTHON_FOR_VENV:-python3}" venv="${VENV:-.venv}" stamp
  "$python" - <<'PY' || return 1
import sys
if sys.version_info < (3, 11):
    sys.exit(f"error: Python {sys.version.split()[0]} is too old; 3.11 or newer is needed "
             "(PYTHON_FOR_VENV=/path/to/python3.12 names another)")
PY
  stamp="$(cat setup.cfg pyproject.toml constraints.txt | cksum) $extras $("$python" -V)"
  PYTHON="$venv/bin/python"
  if [ -x "$PYTHON" ] && [ "$(cat "$venv/.installed" 2>/dev/null)" = "$stamp" ]; then
    return 0
  fi
  echo "setting up $venv (once) ..."
  [ -x "$PYTHON" ] || "$python" -m venv "$venv" || return 1
  # uv is several times faster; pip does it where uv cannot.
  "$PYTHON" -m pip install --quiet --disable-pip-version-check uv 2>/dev/null || true
  if ! "$PYTHON" -m uv pip install --quiet --python "$PYTHON" -c constraints.txt -e ".[$extras]" 2>/dev/null; then
    "$PYTHON" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$extras]" || return 1
  fi
  echo "$stamp" > "$venv/.installed"
}
