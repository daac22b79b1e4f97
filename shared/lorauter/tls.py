"""Certificates in PEM files, checked together and read anew once they change."""

from __future__ import annotations

import logging
import os
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from lorauter.errors import InvalidArgument

CERTIFICATE, KEY, CA = "LORAUTER_TLS_CERTIFICATE", "LORAUTER_TLS_KEY", "LORAUTER_TLS_CA"

_log = logging.getLogger(__name__)
_Stamp = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Tls:
    """Paths of PEM files for one end of TLS connections.

    ``certificate``, with what it is signed by, and ``key`` are what this end shows, both or none; ``ca`` is
    what it trusts, empty: what the system does. ``ca_name`` is what ``ca`` is called in errors.
    """

    ca: str = ""
    certificate: str = ""
    key: str = ""
    ca_name: str = CA

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self | None:
        """Returns how to call lorauter's services, None without TLS: where LORAUTER_TLS_CA is not set."""
        ca = environment.get(CA, "")
        return cls(ca, environment.get(CERTIFICATE, ""), environment.get(KEY, "")) if ca else None

    @property
    def named(self) -> dict[str, str]:
        """The paths by the settings that name them."""
        return {
            name: path
            for name, path in ((self.ca_name, self.ca), (CERTIFICATE, self.certificate), (KEY, self.key))
            if path
        }


@dataclass(frozen=True, slots=True)
class Pem:
    """What the files hold, None where there is none; ``stamp`` changes with the files."""

    ca: bytes | None
    certificate: bytes | None
    key: bytes | None
    stamp: _Stamp


class WatchedTls:
    """The files as they were last found good. Safe to share between threads."""

    def __init__(self, tls: Tls) -> None:
        """Reads them; raises InvalidArgument (TLS_FILES_UNUSABLE), which names the setting."""
        self.tls = tls
        self._lock = threading.Lock()
        self._seen: _Stamp | None = None
        self._pem = _read(tls)

    def current(self) -> Pem:
        """Returns what they hold, the same object until they change.

        Files that do not go together, as between two writes, leave what was there before.
        """
        with self._lock:
            try:
                stamp = _stamp(self.tls)
                if stamp not in (self._pem.stamp, self._seen):
                    self._pem = _read(self.tls)
                    self._seen = stamp
                    _log.info("TLS files were read anew: %s", ", ".join(self.tls.named.values()))
            except InvalidArgument as error:
                if stamp == _stamp_or_none(self.tls):
                    self._seen = stamp
                    _log.warning("TLS files keep what they held before: %s", error.message)
            except OSError:
                pass  # replaced right now: the next connection looks again
            return self._pem


def load_into(context: ssl.SSLContext, tls: Tls) -> None:
    """Gives a context certificate and trust of the files; raises InvalidArgument (TLS_FILES_UNUSABLE)."""
    for name, path in tls.named.items():
        try:
            Path(path).read_bytes()
        except OSError as error:
            raise _unusable(name, f"{path}: {error.strerror}") from None
    if bool(tls.certificate) != bool(tls.key):
        missing = KEY if tls.certificate else CERTIFICATE
        raise _unusable(missing, "certificate and key go together, and only one of them is set")
    if tls.certificate:
        try:
            context.load_cert_chain(tls.certificate, tls.key, password=_no_password)
        except (ssl.SSLError, ValueError, OSError) as error:
            name, path = _culprit(tls)
            raise _unusable(name, f"{path}: {error}") from None
    if tls.ca:
        try:
            context.load_verify_locations(tls.ca)
        except (ssl.SSLError, ValueError, OSError) as error:
            raise _unusable(tls.ca_name, f"{tls.ca}: {error}") from None


def client_context(tls: Tls, *, trusts_system: bool) -> ssl.SSLContext:
    """Returns a context for connections to servers; ``trusts_system``: besides ``tls.ca``.

    Raises InvalidArgument (TLS_FILES_UNUSABLE).
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if trusts_system or not tls.ca:
        context.load_default_certs()
    load_into(context, tls)
    return context


def _read(tls: Tls) -> Pem:
    stamp = _stamp_or_none(tls)
    load_into(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), tls)
    found = [Path(path).read_bytes() if path else None for path in (tls.ca, tls.certificate, tls.key)]
    if stamp is None or stamp != _stamp(tls):
        raise _unusable(next(iter(tls.named)), "the files change while they are read")
    return Pem(found[0], found[1], found[2], stamp)


def _stamp(tls: Tls) -> _Stamp:
    found = (Path(path).stat() for path in tls.named.values())
    return tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in found)


def _stamp_or_none(tls: Tls) -> _Stamp | None:
    try:
        return _stamp(tls)
    except OSError:
        return None


def _culprit(tls: Tls) -> tuple[str, str]:
    """Returns which of both is to blame: the certificate where even it alone cannot be read."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(tls.certificate)
    except (ssl.SSLError, ValueError, OSError):
        return CERTIFICATE, tls.certificate
    return KEY, tls.key


def _no_password() -> str:
    raise ValueError("the key is encrypted, and nobody is there to give its password")


def _unusable(name: str, what: str) -> InvalidArgument:
    return InvalidArgument(
        "TLS_FILES_UNUSABLE", f"{name}: {what}: give PEM files that belong together", field=name
    )
