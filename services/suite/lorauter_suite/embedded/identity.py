"""Chooses as whom PostgreSQL runs, since it refuses root and nameless users."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

_SPAWN = Path(__file__).with_name("spawn.py")


@dataclass(frozen=True)
class Identity:
    """As whom a child runs: as its parent, as that parent renamed in a user namespace, or as another user."""

    kind: Literal["same", "namespace", "user"] = "same"
    uid: int = 0
    gid: int = 0

    def flags(self) -> list[str]:
        """Returns the launcher's flags."""
        return [] if self.kind == "same" else [f"--{self.kind}", f"{self.uid}:{self.gid}"]


SAME = Identity()


@cache
def namespaces_work() -> bool:
    """Returns whether a user namespace can be entered here, by trying."""
    name = _ordinary()
    probe = launcher(Identity("namespace", name.pw_uid, name.pw_gid), 9, ["/bin/true"])
    return subprocess.run(probe, capture_output=True, timeout=10, check=False).returncode == 0  # noqa: S603


@cache
def database_identity() -> Identity:
    """Returns the identity in which PostgreSQL's programs agree to run."""
    if os.geteuid() != 0 and has_name(os.geteuid()):
        return SAME
    name = _ordinary()
    if namespaces_work():
        return Identity("namespace", name.pw_uid, name.pw_gid)
    return Identity("user", name.pw_uid, name.pw_gid) if os.geteuid() == 0 else SAME


def launcher(identity: Identity, death_signal: int, command: list[str]) -> list[str]:
    """Returns the command line that starts ``command`` as a child of this process that dies with it."""
    return [
        *(sys.executable, "-I", "-S", str(_SPAWN), "--parent", str(os.getpid())),
        *("--death-signal", str(int(death_signal)), *identity.flags(), "--", *command),
    ]


def has_name(uid: int) -> bool:
    """Returns whether the user is in /etc/passwd, which initdb demands."""
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _ordinary() -> pwd.struct_passwd:
    """Returns a user that is not root: ``nobody`` where there is one."""
    users = [user for user in pwd.getpwall() if user.pw_uid != 0]
    return next((user for user in users if user.pw_name == "nobody"), users[-1])
