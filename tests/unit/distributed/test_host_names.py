"""Names of hosts that have no address."""

import socket

import pytest

from ds_distill.distributed.host_names import unresolved_reason


@pytest.mark.parametrize("name", ["node1..cluster", ".cluster", "a" * 64, f"{'a' * 64}.cluster"])
def test_a_name_that_cannot_be_one_is_told(name):
    assert unresolved_reason(name) == "a part of the name is empty or longer than 63 characters"


@pytest.mark.parametrize("name", ["127.0.0.1", "::1", "localhost"])
def test_an_address_is_found(name):
    assert unresolved_reason(name) is None


def test_the_systems_own_reason_is_given(monkeypatch):
    def refuse(*_):
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert unresolved_reason("node1") == "Temporary failure in name resolution"
