"""Where the services are, how long a call may take, and when it is tried again."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lorauter.errors import InvalidArgument

Metadata = tuple[tuple[str, str], ...]
"""Names, in lower case, and values that are sent with a call."""

_SENDABLE = re.compile(r"[!-~]*")

TIMEOUT_SECONDS = 30.0
"""Deadline of a call that names none."""

UPLOAD_SECONDS = 300.0
"""Deadline of put_validation_set, whose 100,000 examples are checked and stored in one transaction."""

TRANSFER_SECONDS = 6 * 3600.0
"""Deadline of export_registry and import_registry, which carry all adapters' weights."""

WATCH_SECONDS = 3600.0
"""Deadline of watch_operation: a matching takes minutes."""

CHANNEL_OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.lb_policy_name", "round_robin"),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.dns_min_time_between_resolutions_ms", 5_000),
)
"""Servers send at most 16 MiB. The library's own retries stay on: without a policy they are those of calls
that a server never saw, as when it ends a connection for its age. All others are RetryPolicy's.

A server that was away is found again in 5 s, at another address of its name too, where the library may take
2 minutes; a single connection that fails is made anew before RetryPolicy gives up, not after a second.

Of a name with several addresses, such as a headless service's, all are used in turn.
"""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How an idempotent call that met UNAVAILABLE is tried again (AIP-194).

    At most ``attempts`` tries; before the n-th retry a random wait of up to
    ``first_seconds * 2**(n - 1)``, never over ``longest_seconds`` and never past the call's deadline.
    """

    attempts: int = 4
    first_seconds: float = 0.1
    longest_seconds: float = 1.0

    def waits(self) -> Iterator[float | None]:
        """Yields, after each try, the seconds to wait, and None when there is no further try."""
        for retry in range(self.attempts - 1):
            yield random.uniform(0.5, 1.0) * min(self.longest_seconds, self.first_seconds * 2**retry)  # noqa: S311
        yield None


NO_RETRY = RetryPolicy(attempts=1)
"""One try only, for callers with a retry loop of their own."""


def access_metadata(api_key: str | None, tenant: str) -> Metadata:
    """Returns what says who calls: a key, by default LORAUTER_API_KEY, and the tenant that it acts for.

    Raises InvalidArgument (KEY_MALFORMED, TENANT_MALFORMED).
    """
    key = os.environ.get("LORAUTER_API_KEY", "") if api_key is None else api_key
    if not _SENDABLE.fullmatch(key):
        raise InvalidArgument(
            "KEY_MALFORMED",
            "the API key has a space, a line's end or letters that no key has: pass it as it was given out, "
            "as api_key or in LORAUTER_API_KEY",
            field="api_key",
        )
    if not _SENDABLE.fullmatch(tenant):
        raise InvalidArgument(
            "TENANT_MALFORMED", "the tenant's name has letters that none has", field="tenant"
        )
    metadata = (("authorization", f"Bearer {key}" if key else ""), ("x-lorauter-tenant", tenant))
    return tuple((name, value) for name, value in metadata if value)


def merged(metadata: Metadata, others: Metadata) -> Metadata:
    """Returns both, ``others`` in place of what has the same name."""
    if not others:
        return metadata
    return tuple({**dict(metadata), **dict(others)}.items())


def addresses(registry: str | None, router: str | None, gateway: str | None) -> Mapping[str, str]:
    """Returns host:port by service: what was passed, else LORAUTER_<SERVICE>_ADDRESS, else empty."""
    given = {"registry": registry, "router": router, "gateway": gateway}
    return {
        service: address if address is not None else os.environ.get(f"LORAUTER_{service.upper()}_ADDRESS", "")
        for service, address in given.items()
    }


def known_address(service: str, known: Mapping[str, str]) -> str:
    """Returns the address of a service; raises InvalidArgument (ADDRESS_MISSING) if none is known."""
    address = known[service]
    if not address:
        raise InvalidArgument(
            "ADDRESS_MISSING",
            f"the client does not know where the {service} is: pass {service}='host:port' "
            f"or set LORAUTER_{service.upper()}_ADDRESS",
            field=service,
        )
    return address
