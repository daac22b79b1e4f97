"""What containers are asked by: the image's health check, against servers with and without TLS."""

from __future__ import annotations

import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import trustme

SCRIPT = Path(__file__).resolve().parents[2] / "deploy" / "docker" / "healthcheck.py"


class Service(BaseHTTPRequestHandler):
    """A service that lives and is not ready."""

    def do_GET(self) -> None:
        lives = self.path == "/healthz"
        self.send_response(200 if lives else 503)
        self.end_headers()
        self.wfile.write(b"ok" if lives else b"PostgreSQL is away")

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(context: ssl.SSLContext | None = None) -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Service) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def asked(port: int, path: str, **environment: str) -> tuple[int, str]:
    command = [sys.executable, "-I", "-S", str(SCRIPT), path]
    variables = {"LORAUTER_HTTP_PORT": str(port), **environment}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=30, check=False)
    return done.returncode, done.stderr


def test_living_service_is_healthy_and_one_that_lacks_something_says_what() -> None:
    with serving() as port:
        assert asked(port, "/healthz") == (0, "")
        status, said = asked(port, "/readyz")
    assert status == 1
    assert "/readyz: 503 PostgreSQL is away" in said


def test_service_that_does_not_listen_is_unhealthy() -> None:
    with serving() as port:
        pass
    status, said = asked(port, "/healthz")
    assert (status, "refused" in said) == (1, True)


@pytest.mark.parametrize("callers_must_show_one", [False, True])
def test_service_with_a_certificate_is_asked_over_tls(tmp_path: Path, callers_must_show_one: bool) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("gateway.example")
    certificate, key = tmp_path / "tls.pem", tmp_path / "tls.key"
    for blob in issued.cert_chain_pems:
        blob.write_to_path(certificate, append=True)
    issued.private_key_pem.write_to_path(key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    if callers_must_show_one:
        authority.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    files = {"LORAUTER_TLS_CERTIFICATE": str(certificate), "LORAUTER_TLS_KEY": str(key)}
    with serving(context) as port:
        assert asked(port, "/healthz", **files) == (0, "")
        assert asked(port, "/healthz")[0] == 1
