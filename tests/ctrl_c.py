"""Ctrl-C for processes that tests start."""

from __future__ import annotations

import signal


def hear_ctrl_c() -> None:
    """For `preexec_fn`: who runs in the background ignores it, and so would what is started there."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
