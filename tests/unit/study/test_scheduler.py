"""A study's steps run side by side, in order of need, and end together."""

import contextlib
import json
import multiprocessing
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from ds_distill.study import scheduler
from ds_distill.study.scheduler import Job, run_jobs
from ds_distill.utils import console
from ds_distill.utils.errors import StoppedError, UserError
from ds_distill.utils.stop_signals import SIGNALS
from tests.patience import wait_until
from tests.start import wait_for

HEAD = """
import json, os, pathlib, signal, sys, time
out = pathlib.Path(sys.argv[-1]); room = out.parent; out.mkdir()
def wait(name):
    while not (room / name).exists(): time.sleep(0.05)
"""
SAVE = 'signal.signal(signal.SIGTERM, lambda *_: ((out / "saved").touch(), sys.exit(0)))\n'
END = """
(out / "summary.json").write_text(json.dumps({"threads": os.environ.get("OMP_NUM_THREADS"), "argv": sys.argv[1:]}))
"""


@dataclass(frozen=True)
class Program(Job):
    """A step that is a Python program and gets its folder as a command does."""

    program: str = ""

    def started_as(self) -> list[str]:
        return [sys.executable, "-c", HEAD + self.program + END, *self.command()]


def job(folder: Path, what: str, program: str = "", **options) -> Program:
    return Program(what, folder / what, ("word",), program=program, **options)


def test_side_by_side_in_order_of_need(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    first = job(tmp_path, "first", 'wait("second")')  # each waits for the other; one at a time, they would never end
    second = job(tmp_path, "second", 'wait("first"); print("hello", file=sys.stderr)')
    third = job(tmp_path, "third", model=tmp_path / "first", teacher=tmp_path / "second")
    fourth = job(
        tmp_path,
        "fourth",
        'if not (room / "third/summary.json").exists(): sys.exit(4)',
        depends_on=(tmp_path / "third",),
    )
    run_jobs([fourth, third, first, second], 2, tmp_path / "logs")
    assert all(one.done for one in (first, second, third, fourth))
    started = {name: json.loads((tmp_path / name / "summary.json").read_text()) for name in ("first", "third")}
    assert started["third"]["argv"][1:5] == [
        "--model",
        str(tmp_path / "first" / "export"),
        "--teacher",
        str(tmp_path / "second" / "export"),
    ]
    assert started["first"]["threads"] == str(max(1, len(os.sched_getaffinity(0)) // 2))
    assert (tmp_path / "logs/second.log").read_text().endswith("\nhello\n")
    run_jobs([fourth, third, first, second], 2, tmp_path / "logs")  # nothing runs twice, since the folders are there


def test_waiting_for_a_long_job_is_no_standstill(tmp_path, monkeypatch):
    """The job ends once the study has noted progress while it ran, which its own watch would else report."""
    note = scheduler.note_progress
    monkeypatch.setattr(scheduler, "note_progress", lambda: (note(), (tmp_path / "noted").touch()))
    run_jobs([job(tmp_path, "long", 'wait("noted")')], 1, tmp_path / "logs")
    assert (tmp_path / "long" / "summary.json").is_file()


def test_what_each_of_several_jobs_said_last_is_shown(tmp_path, monkeypatch, capsys):
    """The jobs go on once the study has shown both: a log of hours would else say nothing."""
    monkeypatch.setattr(console._Pause, "is_over", lambda pause: True)
    refresh = console.ProgressBar.refresh

    def refresh_and_go_on(bar, **options):
        if sum("step" in line for line in bar.details) == 2:
            (tmp_path / "shown").touch()
        return refresh(bar, **options)

    monkeypatch.setattr(console.ProgressBar, "refresh", refresh_and_go_on)
    said = (
        'print("2026-01-01 10:00:00 {}: step 7 of 9\\nhalf a li", end="", file=sys.stderr, flush=True); wait("shown")'
    )
    run_jobs([job(tmp_path, name, said.format(name)) for name in ("left", "right")], 2, tmp_path / "logs")
    assert "left, right, " in (err := capsys.readouterr().err) and "left: step 7 of 9, right: step 7 of 9\n" in err


def test_short_jobs_do_not_tell_how_long_the_others_take(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(console._Pause, "is_over", lambda pause: True)
    run_jobs([job(tmp_path, "short"), job(tmp_path, "long")], 1, tmp_path / "logs")
    assert "study: job 1 of 2, long" in (err := capsys.readouterr().err) and " left" not in err


def test_a_step_of_more_seeds_is_done_again_and_waited_for(tmp_path, monkeypatch):
    """The summary of fewer seeds is already there."""
    (tmp_path / "teacher").mkdir()
    summary = tmp_path / "teacher" / "summary.json"
    summary.write_text(json.dumps({"seeds": [0]}))
    program = (
        "import json, pathlib, time; time.sleep(1); "
        f"pathlib.Path({str(summary)!r}).write_text(json.dumps({{'seeds': [0, 1]}}))"
    )
    monkeypatch.setattr(Job, "started_as", lambda self: [sys.executable, "-c", program])
    teacher = Job("teacher", summary.parent, ("word",), seeds=2)
    enough = 'if len(json.loads((room / "teacher/summary.json").read_text())["seeds"]) < 2: sys.exit(4)'
    student = job(tmp_path, "student", enough, teacher=summary.parent)
    assert not teacher.done and student.ready
    run_jobs([teacher, student], 2, tmp_path / "logs")
    assert teacher.done and student.done


@pytest.mark.parametrize("content", ["", "{", "[]", '{"seeds": [0]}'])
def test_a_step_without_a_whole_summary_is_not_done(tmp_path, content):
    (tmp_path / "summary.json").write_text(content)
    assert not Job("teacher", tmp_path, ("word",), seeds=2).done


def test_a_model_is_looked_for_where_its_folder_is_now(tmp_path):
    for name, summary in (
        ("student", {"export": "runs/student/export"}),
        ("tuned", {"export": "runs/tuned/seed=1/model", "output": "runs/tuned"}),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(json.dumps(summary))
    words = Job(
        "tune", tmp_path / "out", ("finetune",), model=tmp_path / "student", teacher=tmp_path / "tuned"
    ).command()
    assert words[1:5] == [
        "--model",
        str(tmp_path / "student" / "export"),
        "--teacher",
        str(tmp_path / "tuned" / "seed=1" / "model"),
    ]


def test_what_takes_the_machine_runs_alone(tmp_path):
    before, after = (
        job(tmp_path, "before", "time.sleep(0.5)"),
        job(tmp_path, "after", 'if not (room / "whole/summary.json").exists(): sys.exit(6)'),
    )
    whole = job(
        tmp_path,
        "whole",
        'if not (room / "before/summary.json").exists(): sys.exit(5)\ntime.sleep(0.5)',
        launcher="launcher",
    )
    run_jobs([before, whole, after], 3, tmp_path / "logs")
    assert [one.done for one in (before, whole, after)] == [True] * 3


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_step_that_fails_ends_the_others(tmp_path, capsys, jobs):
    other = job(tmp_path, "other", SAVE + f'(out / "ready").touch()\nif {jobs} == 2: time.sleep(240)')
    wrong = job(tmp_path, "wrong", 'wait("other/ready"); print("it went wrong", file=sys.stderr); sys.exit(3)')
    with pytest.raises(UserError, match=r"study: wrong ended with status 3.*; repeat the command to resume"):
        run_jobs([other, wrong], jobs, tmp_path / "logs")
    assert (tmp_path / "other/saved").exists() == (jobs == 2)
    assert ("it went wrong" in capsys.readouterr().err) == (
        jobs == 2
    )  # a single job writes to the terminal itself, past Python's capture


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("parallel", [1, 2])
def test_ending_a_study_ends_its_steps(tmp_path, parallel, number):
    program = SAVE + '(out / "ready").touch()\ntime.sleep(240)'
    jobs = [job(tmp_path, f"step{number}", program) for number in range(parallel)]

    def study() -> None:
        signal.signal(
            signal.SIGINT, signal.default_int_handler
        )  # a shell's background jobs and their children ignore SIGINT
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and those of nohup SIGHUP
        try:
            run_jobs(jobs, parallel, tmp_path / "logs")
        except StoppedError as error:
            raise SystemExit(75 if signal.Signals(number).name in str(error) else 1) from None
        except KeyboardInterrupt:
            raise SystemExit(130) from None

    process = multiprocessing.get_context("fork").Process(target=study)
    process.start()
    wait_for(lambda: all((one.output / "ready").exists() for one in jobs))
    os.kill(process.pid, number)
    assert wait_until(lambda: not process.is_alive(), [process.pid]) is None
    assert process.exitcode == (130 if number == signal.SIGINT else 75) and all(
        (one.output / "saved").exists() for one in jobs
    )


@pytest.mark.parametrize("parallel", [1, 2])
def test_killing_a_study_ends_its_steps(tmp_path, parallel):
    """A step reads what nobody writes, until the study is killed."""
    jobs = []
    for number in range(parallel):
        squad = tmp_path / f"squad{number}"
        squad.mkdir()
        os.mkfifo(squad / "train-v1.1.json")
        (squad / "dev-v1.1.json").write_text("{}")
        words = ("make-qnli", "--squad", str(squad))
        jobs.append(Job(f"step{number}", tmp_path / f"step{number}", words))
    process = multiprocessing.get_context("fork").Process(target=run_jobs, args=(jobs, parallel, tmp_path / "logs"))
    process.start()
    pipes = []

    def opened() -> bool:
        with contextlib.suppress(OSError):  # while nobody reads
            pipes.append(os.open(tmp_path / f"squad{len(pipes)}/train-v1.1.json", os.O_WRONLY | os.O_NONBLOCK))
        return len(pipes) == parallel

    def closed(pipe: int) -> bool:
        with contextlib.suppress(BrokenPipeError):
            os.write(pipe, b"[")
            return False
        return True

    wait_for(opened)
    assert not any(map(closed, pipes))
    process.kill()
    wait_for(lambda: all(map(closed, pipes)))
    for pipe in pipes:
        os.close(pipe)


def test_a_job_that_was_asked_to_end_is_no_mistake(tmp_path):
    with pytest.raises(StoppedError, match="study: asked was asked to end, and has saved; repeat the command"):
        run_jobs([job(tmp_path, "asked", "sys.exit(75)")], 1, tmp_path / "logs")


def test_an_end_without_a_summary_is_no_success(tmp_path, monkeypatch):
    monkeypatch.setattr(scheduler, "LATE", 0.3)
    with pytest.raises(UserError, match=r"study: killed ended without .*killed/summary.json"):
        run_jobs([job(tmp_path, "killed", "sys.exit(0)")], 1, tmp_path / "logs")
    monkeypatch.setattr(scheduler, "LATE", 60.0)
    late = (
        """import subprocess; subprocess.Popen(["sh", "-c", f"sleep 1; echo '{{}}' > {out}/summary.json"]); """
        "sys.exit(0)"
    )
    run_jobs([job(tmp_path, "late", late)], 1, tmp_path / "logs")


def test_a_step_whose_start_is_gone_is_said(tmp_path):
    with pytest.raises(UserError, match="study: lost: its inputs do not exist"):
        run_jobs([job(tmp_path, "lost", model=tmp_path / "removed")], 1, tmp_path / "logs")


def test_a_step_takes_a_gpu_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6,")
    say = '(out / "gpu").write_text(os.environ["CUDA_VISIBLE_DEVICES"])'
    jobs = [job(tmp_path, "a", f'{say}; wait("b/gpu")'), job(tmp_path, "b", f'{say}; wait("a/gpu")')]
    run_jobs(jobs, 2, tmp_path / "logs")
    assert [(one.output / "gpu").read_text() for one in jobs] == ["4", "6"]
