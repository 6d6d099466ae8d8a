#!/usr/bin/env bash
# Run the tests in the environment that launch.sh makes. Arguments go to pytest: ./tests/run.sh tests/unit -k launch;
# ./tests/run.sh -m long runs those cases that take minutes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

unset PYTHONDONTWRITEBYTECODE  # with it, each of a thousand processes would compile all that it imports
PY=$(./launch.sh --setup-only)
if [[ $# == 0 ]]; then
    # Many tests need DeepSpeed's optimizers, each of which takes a minute to compile: that runs beside the checks.
    for arguments in "" "offload=True"; do
        "$PY" -c "from ds_distill.builds.fused_adam import build_optimizer; build_optimizer($arguments)" >/dev/null 2>&1 &
    done
fi
prefix=$("$PY" -c "import sys; print(sys.prefix)")
stamp="$prefix/.requirements-dev"
wanted=$(cat requirements.txt requirements-deploy.txt requirements-dev.txt | cksum)
if [[ ! -f "$stamp" || "$(<"$stamp")" != "$wanted" ]]; then
    echo "tests/run.sh: installing requirements-dev.txt ..." >&2
    touch "$prefix/.installing"  # were this interrupted, launch.sh would make the environment anew
    "$PY" -m pip --disable-pip-version-check install --quiet --no-compile -r requirements-dev.txt || { rm "$prefix/.installing"; exit 1; }
    echo "$wanted" >"$stamp"
    rm "$prefix/.installing"
fi
if [[ $# == 0 ]]; then
    "$PY" -m ruff check --quiet . && "$PY" -m ruff format --quiet --check . || {
        echo "tests/run.sh: run '$PY -m ruff check --fix . && $PY -m ruff format .' and look at what is left" >&2
        exit 1
    }
    "$PY" -m mypy || exit 1
    wait  # for the optimizers
fi
# The tests of a file stay together because they share their setup, and the files that take longest come first.
exec "$PY" -m pytest -q --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder "$@"
