"""Test the requests to end a run."""

import multiprocessing
import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from ds_distill.training import interrupt
from ds_distill.training.interrupt import StopRequest, blocked_signals
from ds_distill.utils.stop_signals import SIGNALS
from tests.patience import wait_until


@pytest.fixture(autouse=True)
def handlers():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("answered", [True, False])
def test_a_signal_asks_and_afterwards_ends_the_process_again(number, answered):
    """What came too late to be answered has its usual effect at the end."""
    usual: list[int] = []

    def handler(number, _):
        usual.append(number)

    signal.signal(number, handler)
    with StopRequest() as stop:
        assert not stop.requested
        signal.raise_signal(number)
        assert stop.requested
        stop.answered = answered
    assert signal.getsignal(number) is handler and usual == ([] if answered else [number])


def ask(stop: StopRequest, number: int) -> None:
    """Signal this process, and wait until it has heard that and would take one more Ctrl-C for a person's."""
    heard = len(stop._heard)
    os.kill(os.getpid(), number)
    while len(stop._heard) == heard:
        time.sleep(0.01)
    time.sleep(2 * interrupt.AGAIN)


def end_itself(asked: Sequence[int]) -> None:
    interrupt.AGAIN = 0.1
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup has ignored
    with StopRequest() as stop:
        for number in asked:
            ask(stop, number)
    os._exit(1)


@pytest.mark.parametrize(
    "asked, status",
    [
        ((signal.SIGINT, signal.SIGINT), 130),  # a person insists
        ((signal.SIGTERM, signal.SIGINT), 130),
        ((signal.SIGTERM, signal.SIGTERM), -signal.SIGTERM),  # Slurm repeats its own: at the end, as ever
        ((signal.SIGHUP,), -signal.SIGHUP),
    ],
)
def test_a_second_ctrl_c_ends_at_once(capfd, asked, status):
    process = multiprocessing.get_context("fork").Process(target=end_itself, args=(asked,))
    process.start()
    assert wait_until(lambda: not process.is_alive(), [process.pid]) is None and process.exitcode == status
    assert capfd.readouterr().err.count(f"asked to end by {asked[0].name}: saving after this step") == 1


WAKE = "until grep -q '^State:.T' /proc/{0}/status; do sleep 0.05; done; sleep 0.6; kill -CONT {0}"


def suspend_itself_and_end() -> None:
    interrupt.AGAIN = 0.1
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with StopRequest() as stop:
        for _ in range(3):
            subprocess.Popen(["sh", "-c", WAKE.format(os.getpid())])
            os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(0.3)
        assert not stop.requested and threading.active_count() == 2
        for _ in range(2):
            ask(stop, signal.SIGINT)
    os._exit(1)


def test_a_run_that_was_suspended_still_hears(capfd):
    process = multiprocessing.get_context("fork").Process(target=suspend_itself_and_end)
    process.start()
    assert wait_until(lambda: not process.is_alive(), [process.pid]) is None and process.exitcode == 130
    assert "Traceback" not in capfd.readouterr().err


def test_what_nohup_ignores_asks_for_nothing():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(0.5)
        assert not stop.requested
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_a_thread_leaves_signals_to_the_main_one(handlers):
    def enter():
        with StopRequest() as stop:
            return stop.requested, {number: signal.getsignal(number) for number in SIGNALS}

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(enter).result() == (False, handlers)


def start_compiler(pool: ThreadPoolExecutor) -> subprocess.Popen:
    return pool.submit(subprocess.Popen, ["sh", "-c", "read line; exit 7"], stdin=subprocess.PIPE).result()


def test_signals_to_all_processes_end_no_compiler(handlers):
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with ThreadPoolExecutor(1) as early, ThreadPoolExecutor(1) as late:
        with blocked_signals():
            early.submit(int).result()  # torch.compile starts its threads when it is tried out
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
        with StopRequest():
            compilers = [start_compiler(pool) for pool in (early, late)]
            for compiler in compilers:
                for number in SIGNALS:
                    compiler.send_signal(number)
                compiler.communicate(b"done\n")
    assert [compiler.returncode for compiler in compilers] == [7, 7]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask


@pytest.mark.parametrize(
    "ranks, error, deaf", [(2, RuntimeError, True), (1, RuntimeError, False), (2, KeyError, False)]
)
def test_a_rank_that_has_lost_another_says_so_before_it_is_ended(handlers, monkeypatch, ranks, error, deaf):
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    with pytest.raises(error), StopRequest():
        raise error("Connection closed by peer")
    assert (signal.getsignal(signal.SIGTERM) != handlers[signal.SIGTERM]) is deaf
    assert signal.getsignal(signal.SIGINT) == handlers[signal.SIGINT]
