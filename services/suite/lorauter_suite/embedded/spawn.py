"""Launches a program that dies with its parent, as another identity where asked.

Run by path with ``python -I -S``, so it uses the standard library alone and costs about 20 ms.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
from pathlib import Path

CLONE_NEWUSER = 0x10000000
PR_SET_PDEATHSIG = 1


def enter_user_namespace(uid: int, gid: int) -> None:
    """Makes this process ``uid``:``gid`` in a user namespace of its own; files keep their owner.

    Raises OSError where the kernel does not permit it.
    """
    outer_uid, outer_gid = os.geteuid(), os.getegid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWUSER) != 0:
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWUSER) is not permitted")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {outer_uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {outer_gid} 1")


def become(uid: int, gid: int) -> None:
    """Gives up root for ``uid``:``gid``, for good."""
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def die_with_parent(parent: int, death_signal: int) -> None:
    """Has the kernel send ``death_signal`` when the parent's thread that started this process ends.

    Exits at once if ``parent`` is gone already. Must follow every change of identity, which clears it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        raise SystemExit(1)


def main() -> None:
    """Prepares this process as its arguments say and becomes the program."""
    parser = argparse.ArgumentParser(prog="spawn", description=__doc__)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--death-signal", type=int, default=int(signal.SIGKILL))
    parser.add_argument("--namespace", help="uid:gid inside a user namespace")
    parser.add_argument("--user", help="uid:gid to become")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    try:
        if options.namespace:
            enter_user_namespace(*_pair(options.namespace))
        if options.user:
            become(*_pair(options.user))
        die_with_parent(options.parent, options.death_signal)
        os.execvp(command[0], command)  # noqa: S606
    except OSError as error:
        print(f"{command[0]}: cannot be started: {error}", file=sys.stderr)
        raise SystemExit(126) from None


def _pair(text: str) -> tuple[int, int]:
    uid, gid = text.split(":")
    return int(uid), int(gid)


if __name__ == "__main__":
    main()
