"""A benchmark that cannot continue reports that in one sentence, before it has measured anything."""

import importlib
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from benchmarks.data import prepare
from benchmarks.harness.cli import user_errors, why_it_ended
from benchmarks.inference import table3
from benchmarks.training import memory_estimate, step
from ds_distill.data.tokenizer import train_wordpiece
from ds_distill.utils.errors import UserError

NO_GPU = not torch.cuda.is_available()


def get_stderr(monkeypatch, capsys, module: str, *words) -> str:
    """Return what `python -m benchmarks.MODULE WORDS` writes to standard error when it ends with status 2."""
    monkeypatch.setattr(sys, "argv", [module, *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"benchmarks.{module}").main()
    out, err = capsys.readouterr()
    assert ended.value.code == 2 and not out.strip()
    return err.strip()


MAINS = {
    "training.step": (),
    "training.vocab_loss": (),
    "training.relations": (),
    "training.scaling": ("--step", "1", "--gigabytes-per-second", "1"),
    "training.memory_estimate": (),
    "analysis.quantization_error": ("--model", "m"),
    "analysis.file_agreement": ("--reference", "r", "--model", "m", "--format", "onnx"),
    "data.store_size": (),
    "data.feeding": (),
    "data.prepare": ("--tokenizer", "t", "--text", "x"),
    "analysis.compare_runs": ("a", "--output", "o"),
    "analysis.family_proof": ("--output", "o"),
    "analysis.study_records": ("s", "--output", "o"),
    "inference.pareto": ("--output", "o"),
    "inference.table3": ("--data", "d"),
    "gpu.suite": ("--report", "r"),
    "gpu.checks": (),
    "training.time_to_loss": ("--teacher", "t", "--corpus", "c", "--output", "o"),
}
DOES = {"gpu.suite": "suite", "gpu.checks": "report", "analysis.study_records": "copy_records"}  # the others have `run`


@pytest.mark.parametrize("module", MAINS)
@pytest.mark.parametrize(
    "error, message",
    [
        (UserError("--size: no"), "--size: no"),
        (OSError(28, "No space left on device", "/full"), "/full: No space left on device"),
    ],
    ids=["mistake", "disk"],
)
def test_every_benchmark_ends_with_one_sentence(monkeypatch, capsys, module, error, message):
    def fails(*_):
        raise error

    monkeypatch.setattr(f"benchmarks.{module}.{DOES.get(module, 'run')}", fails)
    assert get_stderr(monkeypatch, capsys, module, *MAINS[module]) == f"benchmarks.{module}: {message}"


def test_ctrl_c_is_one_sentence(capsys):
    with pytest.raises(SystemExit) as ended, user_errors("benchmarks.odd"):
        raise KeyboardInterrupt
    assert ended.value.code == 130 and capsys.readouterr().err == "\nbenchmarks.odd: stopped\n"


@pytest.mark.parametrize(
    "module, words",
    [
        ("training.step", ()),
        ("inference.table3", ("--data", "d", "--tokenizer", "t", "--bodies", "eager_fp32")),
        ("gpu.suite", ("--rehearse",)),
    ],
)
def test_a_report_that_cannot_be_written_is_said_before_anything_is_measured(
    monkeypatch, capsys, tmp_path, module, words
):
    (tmp_path / "taken").write_text("a file")
    stderr = get_stderr(monkeypatch, capsys, module, *words, "--report", tmp_path / "taken")
    assert stderr == f"benchmarks.{module}: --report {tmp_path / 'taken'}: File exists; choose another folder"


def test_settings_that_variants_could_only_fail_at(monkeypatch, capsys):
    assert "--vocabulary 1000: " in get_stderr(monkeypatch, capsys, "training.step", "--vocabulary", 1000)
    step.check(step.baselines.Setting(vocabulary=1001), torch.device("cpu"))
    if NO_GPU:
        assert get_stderr(monkeypatch, capsys, "training.step", "--precision", "fp16").endswith(
            "this machine has no GPU; use bf16, fp32 or auto"
        )
        assert "--vocabulary 900: " in get_stderr(monkeypatch, capsys, "training.scaling", "--vocabulary", 900)


def test_figures_are_printed_before_files_are_written(monkeypatch, capsys, tmp_path):
    class Measured:
        """A variant that has had its turns."""

        def __init__(self, name, *_, **__):
            self.name, self.seconds, self.memory, self.first, self.once, self.description = (
                name,
                [2.0],
                1e6,
                2.0,
                False,
                {"dtype": "float32", "zero": 0},
            )

        def stop(self):
            pass

    def full(*_, **__):
        raise OSError(28, "No space left on device", "training.png")

    monkeypatch.setattr(step, "Variant", Measured)
    monkeypatch.setattr(step, "run_interleaved", lambda *_: None)
    monkeypatch.setattr(step, "bars_plot", full)
    monkeypatch.setattr(
        sys, "argv", ["training", "--size", "tiny", "--only", "engine", "--report", str(tmp_path / "report")]
    )
    with pytest.raises(SystemExit):
        step.main()
    out, err = capsys.readouterr()
    assert err == "benchmarks.training.step: training.png: No space left on device\n"
    assert json.loads(out.splitlines()[-1]) == json.loads((tmp_path / "report" / "training.json").read_text())


def test_how_a_process_ended():
    assert why_it_ended(-9, "a warning\n") == "killed by signal 9, probably because memory ran out"
    assert why_it_ended(-15, "") == "killed by signal 15" and why_it_ended(3, "\n") == "exit status 3"
    assert why_it_ended(1, "Traceback\nds_distill.utils.errors.UserError: no such file\n") == "no such file"
    with pytest.raises(UserError, match="^killed by signal 9"):
        prepare.probe("import os; os.kill(os.getpid(), 9)")


def test_a_forecast_whose_run_fails_says_so(monkeypatch):
    monkeypatch.setattr(
        subprocess,
        "run",
        lambda *_, **__: subprocess.CompletedProcess([], 2, "", "…\nds-distill: --teacher is missing\n"),
    )
    with pytest.raises(UserError, match="^distill failed: ds-distill: --teacher is missing$"):
        memory_estimate.run_command("distill", "--output", "o")


def test_runs_that_cannot_be_compared(monkeypatch, capsys, tmp_path):
    assert "is not a finished run" in get_stderr(
        monkeypatch, capsys, "analysis.compare_runs", tmp_path, "--output", tmp_path / "o"
    )
    (tmp_path / "curves.json").write_text(json.dumps({"heldout": {"": [[0, 0, 5.0, 0.1]]}}))
    stderr = get_stderr(
        monkeypatch, capsys, "analysis.compare_runs", tmp_path, "--output", tmp_path / "curves.json" / "o"
    )
    assert (
        stderr
        == f"benchmarks.analysis.compare_runs: --output {tmp_path / 'curves.json'}: File exists; choose another folder"
    )


def test_a_text_of_any_size_has_a_rate(monkeypatch, capsys, tmp_path):
    assert str(tmp_path / "none.txt") in get_stderr(
        monkeypatch, capsys, "data.prepare", "--tokenizer", "t", "--text", tmp_path / "none.txt"
    )
    (tmp_path / "text.txt").write_text("a few words\n")
    seconds = iter([0.5, 2.0, 1.0])
    monkeypatch.setattr(prepare, "probe", lambda *_: {"seconds": next(seconds)})
    monkeypatch.setattr(
        sys, "argv", ["prepare", "--tokenizer", "t", "--text", str(tmp_path / "text.txt"), "--rounds", "1"]
    )
    assert prepare.main() == 0
    out = capsys.readouterr().out
    result = json.loads(out.splitlines()[-1])
    assert result["prepare_mb_per_second"] == result["text_mb"] / 0.5 > 0
    assert result["times_datasets_map_row_by_row"] == 4.0 and result["times_datasets_map_batched"] == 2.0
    assert (
        "datasets.map, row by row" in out and "datasets.map, batched=True" in out and "4.00×" in out and "2.00×" in out
    )


def test_the_memory_of_preparing_is_the_workers_own(tmp_path):
    """The figure is not the memory of the process that starts the worker, which a fork would inherit."""
    ballast = bytearray(600_000_000)
    program = prepare.PROBE.replace("prepare([", "(lambda *_, **__: None)([").replace(
        "load_tokenizer(sys.argv[1])", "None"
    )
    assert 0 < prepare.probe(program, "t", "x", tmp_path)["peak_mb"] < 550 < len(ballast) / 1e6


def test_examples_are_as_long_as_every_model_reads():
    assert table3.cut([10, 600, 512], {"BERT-base": 512, "student": 512}) == ([10, 512, 512], "truncated to 512 tokens")
    lengths, description = table3.cut([10, 600, 64], {"BERT-base": 512, "student": 64})
    assert (
        lengths == [10, 64, 64]
        and description == "truncated to 64 tokens, the maximum length of student; 1 were longer"
    )
    assert table3.cut([600], {"BERT-base": 512, "student": 1024})[0] == [512]


def test_table3_is_of_a_cpu(monkeypatch, capsys):
    stderr = get_stderr(
        monkeypatch, capsys, "inference.table3", "--data", "d", "--tokenizer", "t", "--bodies", "eager_fp32", "gpu_fp16"
    )
    assert (
        stderr.startswith(
            "benchmarks.inference.table3: --bodies gpu_fp16: table 3 is for CPUs; choose from eager_fp32, "
        )
        and "gpu_bf16" not in stderr
    )


def test_table3_of_a_model_that_reads_less(monkeypatch, capsys, tmp_path):
    tokenizer = tmp_path / "tokenizer"
    train_wordpiece(["a few words of text"] * 20, 200, tokenizer)
    (tmp_path / "dev.jsonl").write_text(
        "".join(json.dumps({"label": i, "sentence": "a few words " * 10**i}) + "\n" for i in range(3))
    )
    positions = {table3.BASE: 512, table3.STUDENT: 64}
    sources = {
        label: (SimpleNamespace(positions=count, model=torch.nn.Linear(1, 1)), tmp_path)
        for label, count in positions.items()
    }
    measured_lengths = []
    monkeypatch.setattr("benchmarks.inference.suite.model_folders", lambda *_: dict.fromkeys(positions, tmp_path))
    monkeypatch.setattr("benchmarks.inference.suite.prepare", lambda *_: sources)
    monkeypatch.setattr(
        table3, "passes", lambda rows, lengths: measured_lengths.extend(lengths) or {row.name: 1.0 for row in rows}
    )
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "table3",
            "--data",
            str(tmp_path / "dev.jsonl"),
            "--tokenizer",
            str(tokenizer),
            "--no-memory",
            "--bodies",
            "eager_fp32",
            "--report",
            str(tmp_path / "report"),
        ],
    )
    assert table3.main() == 0
    assert measured_lengths[0] < 10 and measured_lengths[1:] == [30 + 2, 64]
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result == json.loads((tmp_path / "report" / "table3.json").read_text())
    assert result["cut"] == "truncated to 64 tokens, the maximum length of student; 1 were longer"
    assert result["cut"] in (tmp_path / "report" / "table3.md").read_text()


@pytest.mark.parametrize(
    "module, words, message",
    [
        ("training.scaling", ("--ranks", 0), "--ranks: '0': must be a whole number, 1 or more"),
        (
            "training.scaling",
            ("--step", 1, "--gigabytes-per-second", 0),
            "--gigabytes-per-second: '0': must be a number above 0",
        ),
        (
            "training.memory_estimate",
            ("--cases", "16-1"),
            "--cases 16-1: must be micro-batch, ranks and ZeRO stage",
        ),
        ("data.prepare", ("--tokenizer", "t", "--text", "x", "--rounds", 0), "--rounds: '0'"),
        ("training.vocab_loss", ("--repeats", "0"), "--repeats: '0'"),
        ("training.relations", ("--relation-heads", "0"), "--relation-heads: '0'"),
        ("training.step", ("--repeats", -1), "--repeats: '-1'"),
        ("inference.__main__", ("--batches", 0), "--batches: '0'"),
        ("training.time_to_loss", ("--minutes", "nan"), "--minutes: 'nan': must be a number above 0"),
    ],
)
def test_a_number_that_measures_nothing_is_refused(monkeypatch, capsys, module, words, message):
    assert message in get_stderr(monkeypatch, capsys, module, *words)
