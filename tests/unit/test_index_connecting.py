"""The index's address may hold Qdrant's API key, as other addresses hold passwords."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from lorauter.index.connecting import connect
from lorauter_router.config import Settings

KEY = "a/key of:many@signs"


class Listener(HTTPServer):
    """A server that says of every collection that it is not there, and keeps the keys that it was shown."""

    def __init__(self) -> None:
        self.keys: list[str | None] = []
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: Listener

    def do_GET(self) -> None:
        self.server.keys.append(self.headers.get("api-key"))
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(b'{"result": {"exists": false}, "status": "ok", "time": 0}')

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def listener() -> Iterator[Listener]:
    with Listener() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize(
    ("before", "sent"),
    [("", None), (":secret@", "secret"), (":a%2Fkey%20of%3Amany%40signs@", KEY)],
)
def test_server_is_shown_the_key_of_its_address(listener: Listener, before: str, sent: str | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        client = connect(f"http://{before}127.0.0.1:{listener.server_port}", 3)
    assert not client.collection_exists("any")
    assert listener.keys == [sent]


def test_key_is_not_logged_with_the_settings() -> None:
    settings = Settings.model_validate({"qdrant_url": "http://:secret@qdrant:6333", "access": "open"})
    assert "secret" not in settings.redacted()["QDRANT_URL"]
    assert str(settings.qdrant_url).rstrip("/") == "http://:secret@qdrant:6333"
