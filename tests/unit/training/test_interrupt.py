"""Test the requests to end a run."""

import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from ds_distill.training.interrupt import SIGNALS, StopRequest, blocked_signals


@pytest.fixture(autouse=True)
def handlers():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_asks_and_afterwards_ends_the_process_again(handlers, number):
    with StopRequest() as stop:
        assert not stop.requested
        signal.raise_signal(number)
        assert stop.requested
    assert {number: signal.getsignal(number) for number in SIGNALS} == handlers


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
