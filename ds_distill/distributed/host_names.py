"""The addresses of hosts by their names."""

import socket


def unresolved_reason(host: str) -> str | None:
    """Return why this host cannot find the address of a host by its name, or None where it can."""
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        return error.strerror or str(error)
    except UnicodeError:  # raised before anybody is asked, as for "node1..cluster"
        return "a part of the name is empty or longer than 63 characters"
    return None
