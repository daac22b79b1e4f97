"""Ways to learn from outside whether a process is ready; none of them raises."""

from __future__ import annotations

import http.client

from lorauter_suite.embedded.ports import LOOPBACK


def http_ready(port: int, path: str = "/readyz") -> bool:
    """Returns whether GET on this loopback port answers 200 within a second."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=1)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
