"""Points at which tests of crashes let a process end; inert unless LORAUTER_FAILPOINT or arm() names one.

``LORAUTER_FAILPOINT=publish:2`` kills the process with SIGKILL when it comes to `publish` for the second
time. It is read once, when this is imported, and is for tests only: no service has it as a setting, and a
process that obeys it says so on stderr when it starts.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

VARIABLE = "LORAUTER_FAILPOINT"

POINTS = (
    *("commit", "committed", "wake-up"),
    *("claim", "embed", "upsert", "publish", "acknowledge", "acknowledged"),
)
"""In the order in which a change comes to them; `acknowledge` is before that commit."""


def _kill() -> None:
    os.write(2, f"{VARIABLE} {_name}\n".encode())
    os.kill(os.getpid(), signal.SIGKILL)


_name, _, _times = os.environ.get(VARIABLE, "").partition(":")
_left = int(_times or 1)
_end: Callable[[], None] = _kill

if _name:
    if _name not in POINTS:
        raise SystemExit(f"{VARIABLE} names no fail-point {_name!r}: unset it; it is for tests only")
    print(f"{VARIABLE}: this process will kill itself at {_name!r}", file=sys.stderr, flush=True)


def arm(point: str, end: Callable[[], None]) -> None:
    """Lets whoever comes to a point next call ``end`` there, once, in place of dying; "" disarms."""
    global _name, _left, _end
    assert not point or point in POINTS
    _name, _left, _end = point, 1, end


def reach(point: str) -> None:
    """Does nothing, unless this is where the process is to end."""
    global _left
    if _name == point:
        _left -= 1
        if _left == 0:
            _end()
