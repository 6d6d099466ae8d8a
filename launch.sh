#!/usr/bin/env bash
''':'
# One file, valid as bash and as Python.
#   bash part    finds Python, makes .venv, installs requirements.txt, starts the DeepSpeed launcher on this same file
#   Python part  the program of one rank: the launcher starts its script with Python, so "deepspeed launch.sh" works as typed
#
#   ./launch.sh                        everything, from a bare machine, with ds_configs/demo.yaml
#   ./launch.sh --from-scratch         the same with a tokenizer and a teacher trained here
#   ./launch.sh --config R.yaml        the same with your recipe, on every GPU of this machine
#   ./launch.sh --nnodes 2 --node_rank 0 --master_addr HOST …
#                                      one node of several; under srun, mpirun and Kubeflow nothing of this is needed
#   ./launch.sh --setup-only           the environment only; prints the path of its Python
#   ./launch.sh --setup-only cuda      the same for nodes with GPUs, on one without, such as a login node
#   DS_DISTILL_PYTHON=/path/python     use this Python as it is, install nothing
#   DS_DISTILL_RANKS=n                 ranks on this machine (default: one per GPU, one on a machine without)
#
# No triple quote and no backslash may stand in the bash part: Python reads it as a string.

# Started by another shell (sh launch.sh), which reads on until here: bash takes over, and leaves the mode in which it is sh.
if [ -z "${BASH_VERSION:-}" ]; then
    command -v bash >/dev/null 2>&1 || { echo "launch.sh: needs bash, which is not installed" >&2; exit 127; }
    exec bash "$0" "$@"
fi
set +o posix
set -euo pipefail

SELF=$(readlink -f "${BASH_SOURCE[0]}" 2>/dev/null) || SELF=${BASH_SOURCE[0]}  # it may be a link to the checkout's
HERE=$(CDPATH= cd -- "$(dirname -- "$SELF")" && pwd -P)
VENV="$HERE/.venv"
TICKER=

say() { echo "launch.sh: $*" >&2; }
die() { say "$*"; exit 1; }

has_module() { "$1" -c "import importlib.util as u, sys; sys.exit(u.find_spec(sys.argv[1]) is None)" "$2" >/dev/null 2>&1; }

# A pyenv shim exists for versions that are not selected and then fails, and some distributions ship Python without
# ensurepip: only a candidate that really runs counts.
find_python() {
    local name candidate
    for name in python3.11 python3.12 python3 python; do
        while IFS= read -r candidate; do
            if "$candidate" -c "import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))" >/dev/null 2>&1; then
                echo "$candidate"
                return
            fi
        done < <(type -aP "$name")
    done
    die "needs Python 3.11 or 3.12 with its venv module (on Debian and Ubuntu: packages python3.11 and python3.11-venv)"
}

has_driver() { [[ -e /proc/driver/nvidia/version ]] || type -P nvidia-smi >/dev/null; }

# A container may see the driver of its host and none of its GPUs.
has_gpu() {
    [[ "${DS_ACCELERATOR:-cuda}" == cuda ]] && has_driver || return 1
    # CUDA sees what is named before the first entry that names no GPU, such as -1 or nothing
    if [[ -n "${CUDA_VISIBLE_DEVICES+set}" && ! "${CUDA_VISIBLE_DEVICES%%,*}" =~ ^[[:space:]]*([0-9]|GPU-|MIG-) ]]; then return 1; fi
    compgen -G "/dev/nvidia[0-9]*" >/dev/null || nvidia-smi -L 2>/dev/null | grep -q "^GPU "
}

stop_ticker() {
    if [[ -n "$TICKER" ]]; then kill "$TICKER" 2>/dev/null || true; wait "$TICKER" 2>/dev/null || true; TICKER=; fi
}

# The ticker is the background job, not pip: bash makes background jobs deaf to Ctrl-C.
start_ticker() {
    say "$1 ..."
    (
        trap 'kill "$!" 2>/dev/null; exit 0' TERM  # at once: bash would hear it only after a sleep in its foreground
        while sleep 10 >/dev/null 2>&1 & wait "$!" && kill -0 $$ 2>/dev/null; do say "  still working, ${SECONDS} s"; done
    ) 9>&- &
    TICKER=$!
    trap stop_ticker EXIT
    exec 8>&2  # while pip runs, its file is the standard error of a trap too
    trap 'say "interrupted; start it again to go on" 2>&8; exit 130' INT  # pip ends by itself on Ctrl-C, and bash would go on
}

quiet_pip() { "$PY" -m pip --disable-pip-version-check --no-input install --quiet --no-compile "$@"; }

# pip quiet, its errors shown.
install() {
    local log="$VENV/install.log"
    if ! quiet_pip "$@" >"$log" 2>&1; then
        stop_ticker
        tail -n 30 "$log" >&2
        rm -f "$VENV/.installing"
        die "the installation failed (pip install $*); correct the error above and start again"
    fi
}

make_environment() {
    local stamp="$VENV/.requirements" wanted torch build=cuda
    has_driver || build=cpu
    # CUDA's build runs on a machine without GPUs too, such as the login node of a cluster
    if [[ "$1" == cuda || "$(head -c 5 "$stamp" 2>/dev/null)" == "cuda " ]]; then build=cuda; fi
    PY="$VENV/bin/python"
    wanted="$build $HERE $(cat "$HERE/requirements.txt" "$HERE/pyproject.toml" | cksum)"
    is_ready() { [[ -f "$stamp" && ! -e "$VENV/.installing" && "$(<"$stamp")" == "$wanted" ]] && "$PY" -c "" 2>/dev/null; }
    if is_ready; then return; fi

    # of several starts, from several hosts on a shared file system too, one makes it
    if type -P flock >/dev/null && { exec 9>"$HERE/.venv.lock"; } 2>/dev/null; then
        flock -n 9 || { say "waiting for another process, which is creating .venv"; flock 9; }
        if is_ready; then exec 9>&-; return; fi
    fi
    SECONDS=0
    if [[ -e "$VENV/.installing" && ! -L "$VENV" ]]; then
        say "an installation into .venv was interrupted, creating it again"  # pip may take half a package for a whole one
        rm -rf "$VENV"
    fi
    # the scripts of an environment name the place where it was made; one that is only linked to is another checkout's
    if [[ -f "$stamp" && ! -L "$VENV" && "$(<"$stamp")" != *" $HERE "* ]] || ! { has_module "$PY" pip && "$PY" -c ""; } 2>/dev/null; then
        local base
        base=$(find_python)
        say "creating .venv with $base"
        "$base" -m venv --clear "$VENV" || die "$base -m venv failed"
    fi
    touch "$VENV/.installing"
    start_ticker "installing requirements.txt into .venv"
    torch=$(grep -oE "^torch==[^ ]+" "$HERE/requirements.txt")
    if [[ $build == cuda && -f "$stamp" && "$(<"$stamp")" == cpu* ]]; then
        rm "$stamp"  # without torch nothing is ready, should the next step fail
        "$PY" -m pip uninstall --quiet --yes torch  # "+cpu" satisfies the pin, so pip would keep it
    fi
    if [[ $build == cpu ]] && ! quiet_pip "$torch+cpu" >/dev/null 2>&1; then
        say "  no CPU build of torch is available, installing the general one"
    fi
    install -r "$HERE/requirements.txt"
    install --no-deps --no-build-isolation -e "$HERE"  # the command ds-distill
    stop_ticker
    trap - INT
    exec 8>&-
    echo "$wanted" >"$stamp"
    rm -f "$VENV/.installing"
    exec 9>&-
    say "environment ready after ${SECONDS} s"
}

# Sets PY. An environment that is active and has DeepSpeed is taken as it is. $1 is cuda where CUDA's build is asked for.
choose_python() {
    local prefix
    if [[ -n "${DS_DISTILL_PYTHON:-}" ]]; then
        PY="$DS_DISTILL_PYTHON"
        "$PY" -c "" || die "DS_DISTILL_PYTHON=$PY does not run; set it to a working Python"
        return
    fi
    for prefix in "${VIRTUAL_ENV:-}" "${CONDA_PREFIX:-}"; do
        PY="$prefix/bin/python"
        if [[ -n "$prefix" && "$prefix" != "$VENV" ]] && has_module "$PY" deepspeed; then return; fi
    done
    make_environment "$1"
}

main() {
    local argument
    export PYTHONUNBUFFERED=1
    # Packages are installed without bytecode. Where Python may not keep it, each start compiles all that it imports.
    unset PYTHONDONTWRITEBYTECODE

    if [[ -n "${RANK:-}" && -n "${LOCAL_RANK:-}" && -n "${WORLD_SIZE:-}" ]]; then  # deepspeed --no_python ./launch.sh
        for PY in "${DS_DISTILL_PYTHON:-}" "${VIRTUAL_ENV:-}/bin/python" "${CONDA_PREFIX:-}/bin/python" "$VENV/bin/python" python3 python; do
            if [[ -n "$PY" ]] && has_module "$PY" deepspeed; then exec "$PY" "$HERE/launch.sh" "$@"; fi
        done
        die "no Python with DeepSpeed found on $(hostname): set DS_DISTILL_PYTHON or run ./launch.sh --setup-only there"
    fi

    if [[ "${1:-}" == --setup-only ]]; then
        [[ "${2:-cuda}" == cuda ]] || die "--setup-only $2: give nothing more, or cuda for nodes with GPUs"
        choose_python "${2:-}"
        echo "$PY"
        exit
    fi
    choose_python ""
    has_gpu || export DS_ACCELERATOR="${DS_ACCELERATOR:-cpu}"
    for argument in "$@"; do
        case "$argument" in -h | --help | --version) exec "$PY" "$HERE/launch.sh" "$@" ;; esac
    done
    # DeepSpeed counts NUMA nodes as devices on a machine without GPUs: one rank there unless told otherwise.
    if [[ -z "${DS_DISTILL_RANKS:-}" ]] && ! has_gpu; then DS_DISTILL_RANKS=1; fi
    [[ "${DS_DISTILL_RANKS:-1}" =~ ^[1-9][0-9]*$ ]] || die "DS_DISTILL_RANKS = $DS_DISTILL_RANKS: must be a whole number above 0"
    DS_DISTILL_START="${DS_DISTILL_RANKS:-all}" exec "$PY" "$HERE/launch.sh" "$@"
}

main "$@"; exit
: <<'# end of the Python part'
'''
import os
import sys

if __name__ == "__main__":
    here = os.path.dirname(os.path.realpath(__file__))
    if here not in sys.path:
        sys.path.insert(0, here)
    from ds_distill.launcher import main

    main(os.path.join(here, "launch.sh"))
# end of the Python part
