"""Free loopback ports that stay the same for a data directory."""

from __future__ import annotations

import random
import socket
from pathlib import Path

LOOPBACK = "127.0.0.1"
_LOWEST = 20_000
"""Below it are ports that people choose for well-known services."""


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
        if port not in (taken or set()) and is_free(port):
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
