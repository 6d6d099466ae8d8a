"""Test the requests to end a run."""

import signal

import pytest

from ds_distill.training.interrupt import SIGNALS, StopRequest


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


@pytest.mark.parametrize(
    "ranks, error, deaf", [(2, RuntimeError, True), (1, RuntimeError, False), (2, KeyError, False)]
)
def test_a_rank_that_has_lost_another_says_so_before_it_is_ended(handlers, monkeypatch, ranks, error, deaf):
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    with pytest.raises(error), StopRequest():
        raise error("Connection closed by peer")
    assert (signal.getsignal(signal.SIGTERM) != handlers[signal.SIGTERM]) is deaf
    assert signal.getsignal(signal.SIGINT) == handlers[signal.SIGINT]
