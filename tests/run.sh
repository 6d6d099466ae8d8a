#!/usr/bin/env bash
# All tests, in the environment that launch.sh makes. Arguments go to pytest: ./tests/run.sh tests/unit -k launch
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PY=$(./launch.sh --setup-only)
stamp="$("$PY" -c "import sys; print(sys.prefix)")/.requirements-dev"
wanted=$(cat requirements.txt requirements-deploy.txt requirements-dev.txt | cksum)
if [[ ! -f "$stamp" || "$(<"$stamp")" != "$wanted" ]]; then
    echo "tests/run.sh: installing requirements-dev.txt ..." >&2
    "$PY" -m pip --disable-pip-version-check install --quiet -r requirements-dev.txt
    echo "$wanted" >"$stamp"
fi
# A file's tests stay together, for what they share; the files that take longest come first. Much of a test is waiting for the processes that it starts.
exec "$PY" -m pytest -q --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder "$@"
