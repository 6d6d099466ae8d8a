"""Test what processes do not load: libraries that they do not need would take seconds at each start."""

import json
import subprocess
import sys

import pytest

from tests.start import ROOT, environment_of
from tests.tiny import save_encoder

UNUSED = {
    "torch._dynamo",
    "torch._inductor",
    "torch.distributed.tensor",
    "torch.nn.attention.varlen",
    "scipy.optimize",
    "pandas",
    "sklearn",
    "datasets",
    "setuptools",
    "matplotlib",
}
LIBRARIES = {"torch", "deepspeed", "transformers"}


def loaded_by(program: str, *arguments: str) -> set[str]:
    """Return the modules that a new interpreter has loaded where `program` calls `report`, at its first call."""
    report = (
        "import json, os, sys\n"
        "def report(*_):\n"
        "    print('\\nloaded', json.dumps(list(sys.modules)), flush=True)\n"
        "    os._exit(0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", report + program, *arguments],
        env=environment_of(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("loaded ")]
    assert done.returncode == 0 and lines, done.stderr
    return set(json.loads(lines[-1].removeprefix("loaded ")))


@pytest.mark.parametrize("arguments", [None, ["--help"], ["distill", "--help"]])
def test_the_command_line_alone_loads_no_library(arguments):
    program = "from ds_distill.cli.app import main\n"
    program += f"main({arguments!r})\n" if arguments else ""
    assert not loaded_by(program + "report()") & LIBRARIES


def test_a_distillation_takes_its_first_step_without_what_it_does_not_use(tmp_path):
    teacher = save_encoder("bert", tmp_path / "teacher")
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"line {i} of a text about students and teachers" for i in range(400)))
    program = (
        "from ds_distill.cli.app import main\n"
        "def start():\n"
        "    from ds_distill.training.state import TrainState\n"
        "    TrainState.update = report\n"
        "import ds_distill.import_fixes as fixes\n"
        "defer = fixes.defer_unused_imports\n"
        "fixes.defer_unused_imports = lambda: (defer(), start())\n"
        "raise SystemExit(main(sys.argv[1:]))\n"
    )
    sizes = {"training.max_tokens": 2000, "data.sequence_length": 32, "training.global_batch_size": 8}
    options = [word for key, value in sizes.items() for word in (f"--{key}", str(value))]
    loaded = loaded_by(
        program,
        *("distill", "--teacher", str(teacher), "--corpus", str(text), "--output", str(tmp_path / "run")),
        *options,
        *("--training.micro_batch_size", "8", "--training.compile", "off"),
    )
    assert loaded >= LIBRARIES and not loaded & UNUSED


def test_a_worker_that_prepares_text_loads_no_library():
    loaded = loaded_by("import ds_distill.data.worker_process\nreport()")
    assert "tokenizers" in loaded and not loaded & LIBRARIES


def test_the_process_that_makes_batches_loads_no_library():
    loaded = loaded_by("import ds_distill.data.batch_worker, ds_distill.data.loader\nreport()")
    assert not loaded & {*LIBRARIES, *UNUSED, "tokenizers"}
