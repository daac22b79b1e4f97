"""The replicas behind the URLs that backends are registered with."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from lorauter.errors import Unavailable

EACH_ADDRESS = "dns+"
"""In front of a URL: every address that its name resolves to is a replica."""

Resolve = Callable[[str, int], Sequence[str]]
"""Returns the addresses of a name and port; raises OSError."""


def addresses(name: str, port: int) -> list[str]:
    """Returns the addresses that a name has now, each once; raises OSError."""
    found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def replica_urls(urls: Sequence[str], resolve: Resolve = addresses) -> list[str]:
    """Returns the URL of every replica behind registered URLs, each once, in their order.

    Names are resolved now: who keeps the result does not see replicas that come later. A name without
    addresses is left out where another URL has some. Raises Unavailable (BACKEND_UNAVAILABLE) else.
    """
    found: dict[str, None] = {}
    problems = []
    for url in urls:
        try:
            found.update(dict.fromkeys(_replicas(url, resolve)))
        except OSError as error:
            problems.append(f"{url} has no address ({error})")
    if problems and not found:
        raise Unavailable(
            "BACKEND_UNAVAILABLE", f"{'; '.join(problems)}: check the name, and that replicas are ready"
        )
    return list(found)


def _replicas(url: str, resolve: Resolve) -> list[str]:
    if not url.startswith(EACH_ADDRESS):
        return [url]
    parts = urlsplit(url.removeprefix(EACH_ADDRESS))
    port = parts.port or 80
    hosts = [f"[{address}]" if ":" in address else address for address in resolve(parts.hostname or "", port)]
    return [parts._replace(netloc=f"{host}:{port}").geturl() for host in hosts]
