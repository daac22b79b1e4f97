"""The index process and where it is reached; what it serves is in index_server."""

from __future__ import annotations

import sys

from lorauter_suite.embedded.ports import LOOPBACK
from lorauter_suite.embedded.probes import http_ready
from lorauter_suite.embedded.process import ProcessSpec


def index_url(port: int) -> str:
    """Returns the address that goes into QDRANT_URL."""
    return f"http://{LOOPBACK}:{port}"


def index_process(port: int) -> ProcessSpec:
    """Returns the index process on a loopback port."""
    return ProcessSpec(
        "index",
        [sys.executable, "-m", "lorauter_suite.embedded.index_server"],
        environment={"LORAUTER_HTTP_PORT": str(port), "LORAUTER_HOST": LOOPBACK},
        probe=lambda: http_ready(port),
    )
