"""Free loopback ports that stay the same for a data directory."""

from __future__ import annotations

import random
import socket
import sys
from pathlib import Path

LOOPBACK = "127.0.0.1"
_LOWEST = 20_000
"""Below it are ports that people choose for well-known services."""

_marks: list[socket.socket] = []
"""Kept, for a mark lasts as long as its socket."""


def is_free(port: int) -> bool:
    """Returns whether a server could listen on this loopback port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def _reserve(port: int) -> bool:
    """Returns whether a port is free and nobody else's choice; if so, it is this process's until it ends.

    Between the choice and the server's start nobody listens, so that another suite would find it free too.
    The mark is an abstract socket, which ends with its process; elsewhere than on Linux there are none.
    """
    if not sys.platform.startswith("linux"):
        return is_free(port)
    mark = socket.socket(socket.AF_UNIX)
    try:
        mark.bind(f"\0lorauter-port-{port}")
    except OSError:
        return False
    if is_free(port):
        _marks.append(mark)
        return True
    return False


def free_port(taken: set[int] | None = None) -> int:
    """Returns a free loopback port that is not in ``taken``.

    It lies outside the range from which the kernel serves outgoing connections, so that none takes it
    while a killed server is being restarted. Raises OSError when there is none.
    """
    highest = _first_ephemeral_port() - 1
    if highest - _LOWEST < 1000:
        return _kernel_choice()
    chooser = random.SystemRandom()
    for _ in range(1000):
        port = chooser.randint(_LOWEST, highest)
        if port not in (taken or set()) and _reserve(port):
            return port
    raise OSError(f"no free loopback port between {_LOWEST} and {highest}")


def _first_ephemeral_port() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 0


def _kernel_choice() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])
