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


def loaded_by(program: str, *arguments: str) -> list[set[str]]:
    """Return the modules that a new interpreter has loaded where `program` prints them; `report` does, and ends it."""
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
    return [set(json.loads(line.removeprefix("loaded "))) for line in lines]


@pytest.mark.parametrize("arguments", [None, ["--help"], ["distill", "--help"]])
def test_the_command_line_alone_loads_no_library(arguments):
    program = "from ds_distill.cli.app import main\n"
    program += f"main({arguments!r})\n" if arguments else ""
    [loaded] = loaded_by(program + "report()")
    assert not loaded & LIBRARIES


def test_a_distillation_loads_only_the_library_of_its_plots_after_its_first_step(tmp_path):
    teacher = save_encoder("bert", tmp_path / "teacher")
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"line {i} of a text about students and teachers" for i in range(400)))
    first_step = (
        "from ds_distill.cli.app import main\n"
        "import ds_distill.import_fixes as fixes\n"
        "defer = fixes.defer_unused_imports\n"
        "def defer_and_watch():\n"
        "    defer()\n"
        "    from ds_distill.training.state import TrainState\n"
        "    update = TrainState.update\n"
        "    def first(*arguments):\n"
        "        TrainState.update = update\n"
        "        print('\\nloaded', json.dumps(list(sys.modules)), flush=True)\n"
        "        update(*arguments)\n"
        "    TrainState.update = first\n"
        "fixes.defer_unused_imports = defer_and_watch\n"
        "main(sys.argv[1:])\n"
        "report()\n"
    )
    sizes = {"training.max_tokens": 2000, "data.sequence_length": 32, "training.global_batch_size": 8}
    options = [word for key, value in sizes.items() for word in (f"--{key}", str(value))]
    at_first_step, at_the_end = loaded_by(
        first_step,
        *("distill", "--teacher", str(teacher), "--corpus", str(text), "--output", str(tmp_path / "run")),
        *options,
        *("--training.micro_batch_size", "8", "--training.compile", "off"),
    )
    assert at_first_step >= LIBRARIES and not at_first_step & UNUSED
    assert (tmp_path / "run" / "export" / "model.safetensors").is_file()
    assert at_the_end & UNUSED <= {"matplotlib"}


def test_a_fine_tuning_loads_nothing_that_it_does_not_use(tmp_path):
    model = save_encoder("bert", tmp_path / "model")
    data = tmp_path / "data"
    data.mkdir()
    for split, count in (("train", 64), ("dev", 16)):
        rows = ({"sentence": f"text {i}", "label": i % 2} for i in range(count))
        (data / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    [loaded] = loaded_by(
        "from ds_distill.cli.app import main\nmain(sys.argv[1:])\nreport()",
        *("finetune", "--task", "sst2", "--model", str(model), "--data", str(data), "--output", str(tmp_path / "run")),
        *("--finetune.epochs", "1", "--seeds", "1"),
    )
    assert (tmp_path / "run" / "summary.json").is_file()
    assert loaded >= LIBRARIES and not loaded & UNUSED


def test_a_worker_that_prepares_text_loads_no_library():
    [loaded] = loaded_by("import ds_distill.data.worker_process\nreport()")
    assert "tokenizers" in loaded and not loaded & LIBRARIES


def test_the_process_that_makes_batches_loads_no_library():
    [loaded] = loaded_by("import ds_distill.data.batch_worker, ds_distill.data.loader\nreport()")
    assert not loaded & {*LIBRARIES, *UNUSED, "tokenizers"}
