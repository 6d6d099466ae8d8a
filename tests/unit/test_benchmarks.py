"""What the benchmarks compute from their measurements, and that contenders are processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu_checks, gpu_suite
from benchmarks.arena import Contender, ratio, take_turns
from benchmarks.closed_form import worst
from benchmarks.race import at_minute, verdict
from benchmarks.scaling import bytes_moved

ROOT = Path(__file__).parents[2]


def make(setting, device):
    """A contender whose step takes what the setting says."""
    if setting.broken:
        raise ValueError("no such shape")
    return lambda: setting.seconds, {"rank": os.environ["RANK"], "world": os.environ["WORLD_SIZE"], "pages": os.environ["PAGES"], "pid": os.getpid()}


def test_contenders_are_processes_with_an_environment_of_their_own():
    setting = SimpleNamespace(threads=1, seconds=0.25, broken=False)
    contender = Contender("two", make, setting, ranks=2, environment={"PAGES": "small"})
    try:
        take_turns([contender], 3)
        assert contender.seconds == [0.25] * 3 and contender.said == {"rank": "0", "world": "2", "pages": "small", "pid": contender.processes[0].pid}
        assert contender.said["pid"] != os.getpid() and "PAGES" not in os.environ
    finally:
        contender.stop()
    assert not any(process.is_alive() for process in contender.processes)


def test_a_contender_that_fails_is_named_with_its_reason():
    contender = Contender("odd", make, SimpleNamespace(threads=1, broken=True))
    try:
        with pytest.raises(RuntimeError, match="odd.*(?s:.*)no such shape"):
            take_turns([contender], 1)
    finally:
        contender.stop()


def test_a_contender_that_is_killed_is_said_to_be():
    contender = Contender("large", make, SimpleNamespace(threads=1, seconds=0.25, broken=False))
    try:
        contender.processes[0].kill()
        contender.processes[0].join()
        for _ in range(2):  # its link is noticed to be broken by the first answer, or by the next question
            with pytest.raises(RuntimeError, match="large: its process has ended .killed, as where memory runs out"):
                contender.ask("step")
    finally:
        contender.stop()


def test_ratios_are_within_a_round():
    assert ratio([2.0, 4.0, 60.0], [1.0, 2.0, 20.0]) == 2.0
    assert ratio([6.0], [1.0, 2.0, 3.0]) == 3.0


def test_a_nan_is_the_worst_of_errors():
    assert worst(iter((1e-6, 3e-6, 2e-6))) == 3e-6
    assert all(not worst(errors) <= 1.0 for errors in ((1e-6, float("nan")), (float("nan"), 1e-6)))


def test_bytes_that_a_rank_sends():
    assert bytes_moved(100, 0, 4, 1) == 0  # alone
    assert bytes_moved(100, 0, 4, 2) == 400  # half of the gradients to the other and half of the sums back
    assert bytes_moved(100, 1, 2, 4) == 0.75 * (2 * 400 + 200)


def test_the_race_is_read_off_its_curves():
    rows = lambda *figures: [[minute, 0, {"": [loss, loss, 1 - loss / 10]}] for minute, loss in figures]  # noqa: E731
    plain, engine = rows((0, 9.0), (10, 7.0), (20, 5.0)), rows((0, 9.0), (5, 6.0), (10, 4.0), (20, 3.0))
    assert at_minute(plain, 15, "", 0) == 6.0 and at_minute(plain, 25, "", 0) == 5.0
    found = verdict({"plain": {"rows": plain}, "engine": {"rows": engine}}, [""])
    assert found["plain"]["ahead_at"] == "3 of 3" and found["plain"]["ahead_by_figure"] == dict.fromkeys(("mlm_loss", "kl", "agreement"), "3 of 3")
    assert found["plain"]["share_of_its_time"] == {"corpus": 0.375}  # 5.0 between 6.0 at 5 and 4.0 at 10: 7.5 of 20
    slower = verdict({"plain": {"rows": engine}, "engine": {"rows": plain}}, [""])
    assert slower["plain"]["ahead_at"] == "0 of 2" and slower["plain"]["share_of_its_time"] == {"corpus": None}


def test_the_benchmarks_of_the_step_need_neither_datasets_nor_an_argument_parser():
    """A bare GPU machine has torch, transformers and a DeepSpeed wheel."""
    code = ("import sys\nsys.modules |= dict.fromkeys(('datasets', 'jsonargparse', 'pyarrow'))\n"
            "import benchmarks.gpu_suite, benchmarks.gpu_checks, benchmarks.training, benchmarks.head, benchmarks.scaling")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]


def test_without_a_gpu_the_suite_refuses_and_a_rehearsal_reports(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU: run the suite itself")
    start = [sys.executable, "-m", "benchmarks.gpu_suite", "--report", str(tmp_path)]
    refused = subprocess.run(start, capture_output=True, text=True, cwd=ROOT)
    assert refused.returncode == 2 and "no GPU" in refused.stderr and not list(tmp_path.iterdir())
    done = subprocess.run([*start, "--rehearse", "--only", "head"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    page, found = (tmp_path / "gpu_suite.md").read_text(), json.loads((tmp_path / "gpu_suite.json").read_text())
    assert "REHEARSAL" in page and found["rehearsal"] and found["parts"]["head"]["milliseconds"]["fused"] > 0
    assert json.loads(done.stdout.splitlines()[-1])["not_measured_or_broken"] == []
    assert page.count("not measured: not asked for") >= len(gpu_suite.PARTS) - 1


def test_verdicts_follow_the_figures():
    checks = {"square_gemm": {"tflops": 800.0}, "broken": [], "checks": [{"error": "1e-6"}, {"error": None}]}
    nothing = {name: {"why": "no time left"} for name, *_ in gpu_suite.PARTS}
    assert gpu_suite.verdicts(nothing) == ["Nothing was measured."]
    step = {"engine": 650_000.0, "mflops_a_token": 628.7, "gemm_floor_share": 0.8, "peak_mb_of_a_step": {"engine": 5000}, "first_step_extra_s": 30.0}
    head = {"milliseconds": {"fused_compiled": 12.0, "fused_triton": 10.0}}
    found = nothing | {"checks": checks, "step_128": step, "head": head}
    numerics, goal, kernel = gpu_suite.verdicts(found)
    assert "all limits hold" in numerics and "1 of 2 not measured" in numerics
    assert "650,000 tokens/s and 51 % with 128 × 128 tokens a step (met, met)" in goal and "512" not in goal
    assert "1.20×" in kernel and "it stays the default" in kernel
    assert "(not met, not met)" in gpu_suite.verdicts(found | {"step_128": step | {"engine": 4.5e5}})[1]
    head = {"milliseconds": {"fused_compiled": 10.5, "fused_triton": 10.0}}
    assert "torch.compile should be the default" in gpu_suite.verdicts(found | {"head": head})[2]
    assert "DO NOT HOLD: varlen" in gpu_suite.verdicts(found | {"checks": checks | {"broken": ["varlen"]}})[0]
    rows = gpu_suite.summary_rows(found)
    assert rows[0]["tokens/s"] == 650_000 and rows[0]["share"] == "51 %" and rows[1]["tokens/s"] == "not measured: no time left"


@pytest.mark.parametrize("check", [gpu_checks.vocabulary, gpu_checks.compiled_blocks, gpu_checks.varlen, gpu_checks.host_syncs])
def test_checks_hold_here_or_say_why_they_were_not_made(check):
    for what, error, limit, why in check(torch.device("cpu")):
        assert (error is None) == bool(why) and (error is None or error <= limit), what
