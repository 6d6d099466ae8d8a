"""Test the GPU suite and its checks on a CPU: what they report about results, gaps and interruptions."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.gpu import checks as gpu_checks
from benchmarks.gpu import suite as gpu_suite
from benchmarks.gpu.checks import Check
from tests.patience import communicate
from tests.start import environment_of, wait_for

ROOT = Path(__file__).parents[3]


def run_without_a_gpu(folder: Path, *options: str) -> subprocess.CompletedProcess:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU: run the suite itself")
    start = [sys.executable, "-m", "benchmarks.gpu.suite", "--report", str(folder)]
    return subprocess.run([*start, *options], capture_output=True, text=True, cwd=ROOT)


def test_without_a_gpu_the_suite_refuses(tmp_path):
    refused = run_without_a_gpu(tmp_path)
    assert refused.returncode == 2 and "no GPU" in refused.stderr and not list(tmp_path.iterdir())


@pytest.mark.long
def test_a_rehearsal_reports(tmp_path):
    done = run_without_a_gpu(tmp_path, "--rehearse", "--only", "head")
    assert done.returncode == 0, done.stderr[-2000:]
    page, report = (tmp_path / "gpu_suite.md").read_text(), json.loads((tmp_path / "gpu_suite.json").read_text())
    assert "REHEARSAL" in page and report["rehearsal"] and report["parts"]["head"]["milliseconds"]["fused"] > 0
    assert (
        report["command"] == f"python -m benchmarks.gpu.suite --report {tmp_path} --rehearse --only head"
        and f"`{report['command']}`" in page
    )
    assert json.loads(done.stdout.splitlines()[-1])["not_measured_or_broken"] == []
    assert page.count("not measured: not asked for") >= len(gpu_suite.PARTS) - 1


def test_what_is_measured_stays_where_the_suite_is_cut_off(tmp_path, monkeypatch, capsys):
    """The report is written after each part, and only as a whole file: a failed write leaves the previous file."""
    monkeypatch.setattr(sys, "argv", ["gpu_suite", "--rehearse", "--report", str(tmp_path / "deep" / "report")])
    monkeypatch.setattr(gpu_suite, "start_build", lambda: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # this process must keep its handlers
    result = {
        "checks": [{"error": "1e-6"}],
        "broken": [],
        "not_made": {},
        "device": "cpu",
        "machine": "a machine",
        "said": "",
        "seconds": 1.0,
    }

    def run(arguments, seconds):
        if arguments[0] != "benchmarks.gpu.checks":
            raise KeyboardInterrupt
        assert (tmp_path / "deep" / "report").is_dir(), "made before the first part"
        return result

    monkeypatch.setattr(gpu_suite, "run", run)
    with pytest.raises(SystemExit) as ended:
        gpu_suite.main()
    assert ended.value.code == 130 and capsys.readouterr().err.strip().endswith("benchmarks.gpu.suite: stopped")
    kept = json.loads((tmp_path / "deep" / "report" / "gpu_suite.json").read_text())
    assert (
        kept["parts"]["checks"] == result
        and kept["parts"]["head"] == {"why": "not reached"}
        and kept["machine"] == "a machine"
    )
    page = (tmp_path / "deep" / "report" / "gpu_suite.md").read_text()
    assert "INTERRUPTED, or still running, before: step_128, large, head" in page and "all 1 limits hold" in page
    assert sorted(file.name for file in (tmp_path / "deep" / "report").iterdir()) == ["gpu_suite.json", "gpu_suite.md"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_part_ends_with_the_suite(tmp_path, number):
    """The part's child processes, which belong to its group, end too.

    The suite is real; its only part starts another process and hangs.
    """
    pids = tmp_path / "pids"
    part = (
        "import os, subprocess, sys, time; "
        "other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{other.pid}} '); time.sleep(600)"
    )
    suite = (
        "from benchmarks.gpu import suite as gpu_suite\n"
        "gpu_suite.PARTS, gpu_suite.rehearsed = "
        f"(('checks', 'hangs', ('timeit', '-n', '1', '-r', '1', {part!r})),), list\n"
        "gpu_suite.start_build = lambda: None\n"
        "raise SystemExit(gpu_suite.main())"
    )
    job = subprocess.Popen(
        [sys.executable, "-c", suite, "--rehearse", "--report", str(tmp_path / "report")],
        cwd=ROOT,
        env=environment_of(),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        wait_for(lambda: pids.is_file() and pids.read_text().endswith(" "), job)
        job.send_signal(number)
        _, errors = communicate(job)
        assert job.returncode == 130 and errors.strip().endswith("benchmarks.gpu.suite: stopped")
    finally:
        job.kill()
        job.stderr.close()
    wait_for(lambda: not any(running(pid) for pid in pids.read_text().split()))


def running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_part_that_ends_without_figures_says_how():
    assert (
        gpu_suite.run(["timeit", "-n", "1", "-r", "1", "raise ValueError('no such shape')"], 60)["why"]
        == "ValueError: no such shape"
    )
    assert gpu_suite.run(["timeit", "-n", "1", "-r", "1", "import os; os.kill(os.getpid(), 9)"], 60)["why"].startswith(
        "killed by signal 9"
    )
    late = gpu_suite.run(["timeit", "-n", "1", "-r", "1", "import time; time.sleep(3600)"], 0.5)
    assert late["why"].startswith("not finished after") and late["seconds"] < 3600


def test_verdicts_follow_the_figures():
    checks = {
        "square_gemm": {"tflops": 800.0},
        "broken": [],
        "not_made": {},
        "checks": [{"error": "1e-6"}, {"error": None}],
    }
    nothing = {name: {"why": "no time left"} for name, *_ in gpu_suite.PARTS}
    assert gpu_suite.verdicts(nothing) == ["Numerics: NOT CHECKED: no time left."]
    step = {
        "engine": 650_000.0,
        "mflops_per_token": 628.7,
        "gemm_bound_fraction": 0.8,
        "peak_mb": {"engine": 5000},
        "first_step_extra_s": 30.0,
    }
    head = {"milliseconds": {"fused_compiled": 12.0, "fused_triton": 10.0}}
    parts = nothing | {"checks": checks, "step_128": step, "head": head}
    numerics, goal, kernel = gpu_suite.verdicts(parts)
    assert numerics == "Numerics: all 2 limits hold."
    assert "650,000 tokens/s and 51 % with 128 × 128 tokens per step (met, met)" in goal and "512" not in goal
    assert "1.20×" in kernel and "it stays the default" in kernel
    assert "(not met, not met)" in gpu_suite.verdicts(parts | {"step_128": step | {"engine": 4.5e5}})[1]
    head = {"milliseconds": {"fused_compiled": 10.5, "fused_triton": 10.0}}
    assert "torch.compile should be the default" in gpu_suite.verdicts(parts | {"head": head})[2]
    inference = {"summary": {"batch_32_vs_base_same_body": {"gpu_fp16": 1.98, "gpu_compiled": 2.0}}}
    assert gpu_suite.verdicts(parts | {"inference": inference})[3] == (
        "Speed of an encoder of DistilBERT's size relative to BERT-base's at 32 × 128 tokens: "
        "1.98× in PyTorch, fp16, GPU, 2.00× in torch.compile, fp16, GPU."
    )
    fed = {"engine_vs_engine_fed": 1.004, "engine_vs_engine_fed_by_thread": 1.25}
    assert (
        "takes 1.00× the time of one on a fixed batch, or 1.25× where a thread"
        in gpu_suite.verdicts(parts | {"fed": fed})[3]
    )
    relations = {f"relations_{length}": {"share_of_step": {"relations": 0.05 * length / 128}} for length in (128, 512)}
    at_128, at_512 = gpu_suite.verdicts(parts | relations)[3:5]
    assert "5.0 % of a step of 128 × 128 tokens (goal 6 %: met)" in at_128 and "(goal 6 %: not met)" in at_512
    rows = gpu_suite.summary_rows(parts)
    assert (
        rows[0]["tokens/s"] == 650_000
        and rows[0]["share"] == "51 %"
        and rows[1]["tokens/s"] == "not measured: no time left"
    )
    assert rows[0]["memory"] == 5000


def test_not_all_limits_hold_where_checks_were_not_made():
    checks = {"checks": [{}] * 5, "broken": [], "not_made": {"a": "no time left", "b": "no time left", "c": "no ninja"}}
    sentence = gpu_suite.numerics(checks)
    assert (
        sentence == "Numerics: 3 of 5 checks NOT MADE (2 × no time left; 1 × no ninja); the limits of the other 2 hold."
    )
    sentence = gpu_suite.numerics(checks | {"broken": ["varlen"]})
    assert (
        sentence.startswith("Numerics: 1 of 5 limits DO NOT HOLD: varlen; 3 of 5 checks NOT MADE (")
        and "hold." not in sentence
    )
    # On a GPU that is a failure. On a CPU it is not, because some kernels cannot run there.
    assert gpu_suite.without_result({"checks": checks | {"device": "cuda"}, "head": {"why": "not asked for"}}) == [
        "a",
        "b",
        "c",
    ]
    assert gpu_suite.without_result({"checks": checks | {"device": "cpu"}, "head": {"why": "no time left"}}) == ["head"]


@pytest.mark.parametrize(
    "family",
    [
        *(pytest.param(slow, marks=pytest.mark.long) for slow in (gpu_checks.vocabulary, gpu_checks.compiled_blocks)),
        *(gpu_checks.relations, gpu_checks.varlen, gpu_checks.host_syncs),
    ],
)
def test_checks_hold_here_or_say_why_they_were_not_made(family, monkeypatch):
    monkeypatch.setattr(gpu_checks, "CHECKS", (family,))
    for row in gpu_checks.results(torch.device("cpu"), float("inf")):
        if row["holds"] != "holds":
            assert row["error"] is None and row["holds"] == f"not made: {row['why']}", row
            assert "GPU" in row["why"] or row["why"] == gpu_checks.compile_unavailable_reason(), row
            assert ", torch," not in row["check"], row


def test_each_check_that_was_not_made_is_counted():
    names = [row["check"] for row in gpu_checks.results(torch.device("cpu"), -1.0)]
    # The vocabulary loss has two precisions, three kinds of rows and three backends; the relations have two precisions,
    # four kinds and two backends; attention within documents is checked with and without a window; the waits have two
    # lengths of sequences; the engine has four stages in two precisions.
    assert len(names) == len(set(names)) == 18 + 16 + 1 + 2 + 2 + 1 + 8
    assert {row["why"] for row in gpu_checks.results(torch.device("cpu"), -1.0)} == {gpu_checks.NO_TIME}


@pytest.mark.parametrize("device, available, status", [("cuda", True, 0), ("cuda", False, 1), ("cpu", False, 0)])
def test_a_check_that_was_not_made_fails_on_a_gpu(monkeypatch, capsys, device, available, status):
    def broken():
        raise RuntimeError("no such kernel\nand more")

    def not_here():
        gpu_checks.unless(None if available else "no ninja")
        return 1e-6, " (built)"

    def family(_):
        yield Check("holds", 1e-5, lambda: (1e-6, ""))
        yield Check("perhaps", 1e-5, not_here)

    monkeypatch.setattr(gpu_checks, "CHECKS", (family,))
    for name, value in {
        "start_distributed": None,
        "local_device": SimpleNamespace(type=device),
        "square_gemm": {},
        "describe": "m",
    }.items():
        monkeypatch.setattr(gpu_checks, name, lambda *_, value=value: value)
    assert gpu_checks.report(60.0) == status
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["broken"] == [] and result["not_made"] == ({} if available else {"perhaps": "no ninja"})
    assert [row["check"] for row in result["checks"]] == ["holds", "perhaps (built)" if available else "perhaps"]

    monkeypatch.setattr(
        gpu_checks,
        "CHECKS",
        (lambda _: [Check("breaks", 1e-5, broken), Check("is nan", 1.0, lambda: (float("nan"), ""))],),
    )
    assert gpu_checks.report(60.0) == 1
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["broken"] == ["breaks", "is nan"] and result["checks"][0]["holds"] == "DOES NOT RUN: no such kernel"
