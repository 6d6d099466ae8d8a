#!/usr/bin/env bash
# Run all tests in the environment that launch.sh makes. Arguments go to pytest: ./tests/run.sh tests/unit -k launch
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

unset PYTHONDONTWRITEBYTECODE  # with it, each of a thousand processes would compile all that it imports
PY=$(./launch.sh --setup-only)
prefix=$("$PY" -c "import sys; print(sys.prefix)")
stamp="$prefix/.requirements-dev"
wanted=$(cat requirements.txt requirements-deploy.txt requirements-dev.txt | cksum)
if [[ ! -f "$stamp" || "$(<"$stamp")" != "$wanted" ]]; then
    echo "tests/run.sh: installing requirements-dev.txt ..." >&2
    touch "$prefix/.installing"  # were this interrupted, launch.sh would make the environment anew
    "$PY" -m pip --disable-pip-version-check install --quiet -r requirements-dev.txt || { rm "$prefix/.installing"; exit 1; }
    echo "$wanted" >"$stamp"
    rm "$prefix/.installing"
fi
if [[ $# == 0 ]]; then
    "$PY" -m ruff check --quiet . && "$PY" -m ruff format --quiet --check . || {
        echo "tests/run.sh: run '$PY -m ruff check --fix . && $PY -m ruff format .' and look at what is left" >&2
        exit 1
    }
    "$PY" -m mypy || exit 1
fi
# The tests of a file stay together because they share their setup, and the files that take longest come first.
# Much of a test is waiting for the processes that it starts, so there is one worker more than there are cores.
workers=$("$PY" -c "import os; print(min(4, len(os.sched_getaffinity(0)) + 1))")
exec "$PY" -m pytest -q --numprocesses "$workers" --dist loadfile --no-loadscope-reorder "$@"
