"""What a hub, or whoever answers in its place, can make the registry fetch."""

from __future__ import annotations

import gzip
import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from lorauter.errors import LorauterError
from lorauter.lora.check import CONFIG_FILE
from lorauter_registry.adapters.hub import HuggingFaceHub
from tests.security.adapters.model import config_bytes, weights_bytes

COMMIT = "0123456789" * 4
NAME = f"n/m@{COMMIT}"
Handler = BaseHTTPRequestHandler


class Host:
    """A host on loopback that answers by ``answer`` and remembers what it was asked."""

    def __init__(self, answer: Callable[[Handler, str], None]) -> None:
        self.asked: list[tuple[str, str | None]] = []
        host = self

        class _Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host.asked.append((self.path, self.headers["Authorization"]))
                answer(self, Path(self.path).name)

            def log_message(self, *_: object) -> None:
                """Keeps the tests' output clean."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self.server.daemon_threads = True

    @property
    def address(self) -> str:
        """The host by its number; by its name it is another host."""
        return f"http://127.0.0.1:{self.server.server_port}"


@contextmanager
def running(host: Host) -> Iterator[Host]:
    thread = threading.Thread(target=host.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield host
    finally:
        host.server.shutdown()
        host.server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")


def send(handler: Handler, status: int, data: bytes = b"", **headers: str) -> None:
    handler.send_response(status)
    known = {"X-Repo-Commit": COMMIT, "Content-Length": str(len(data))}
    for name, value in {**known, **{key.replace("_", "-"): headers[key] for key in headers}}.items():
        if value:
            handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(data)


def files(handler: Handler, name: str) -> None:
    """Answers as the hub does for an adapter without a tokenizer."""
    known = {CONFIG_FILE: config_bytes(), "adapter_model.safetensors": weights_bytes()}
    if name in known:
        send(handler, 200, known[name])
    else:
        send(handler, 404, X_Error_Code="EntryNotFound")


def refusal(hub: HuggingFaceHub) -> LorauterError:
    with pytest.raises(LorauterError) as caught, hub.fetched(NAME):
        pytest.fail("nothing should have been fetched")
    return caught.value


def redirecting(target: str) -> Host:
    return Host(lambda handler, name: send(handler, 302, Location=target.format(name=name)))


def test_a_redirection_within_the_hub_is_followed() -> None:
    """As the hub answers for a repository that was renamed."""

    def answer(handler: Handler, name: str) -> None:
        if "/n/m/" in handler.path:
            send(handler, 307, Location=f"/new/m/resolve/{COMMIT}/{name}")
        else:
            files(handler, name)

    with running(Host(answer)) as hub, HuggingFaceHub(10**6, 5, hub.address).fetched(NAME) as folder:
        assert (folder / CONFIG_FILE).read_bytes() == config_bytes()
    assert {token for _, token in hub.asked} == {"Bearer hf_secret"}


def test_a_redirection_to_an_allowed_host_is_followed_without_the_token() -> None:
    with running(Host(files)) as store:
        target = f"http://localhost:{store.server.server_port}/{{name}}"
        with running(redirecting(target)) as hub:
            allowed = HuggingFaceHub(10**6, 5, hub.address, hosts=["localhost"])
            with allowed.fetched(NAME) as folder:
                assert (folder / "adapter_model.safetensors").read_bytes() == weights_bytes()
    assert {token for _, token in store.asked} == {None}
    assert {token for _, token in hub.asked} == {"Bearer hf_secret"}


@pytest.mark.parametrize(
    "target",
    [
        "http://localhost:{port}/{{name}}",
        "http://user@localhost:{port}/{{name}}",
        "//localhost:{port}/{{name}}",
        "http://huggingface.co@localhost:{port}/",
        "http://127.0.0.1:{port}/{{name}}",
        "http://0x7f000001:{port}/",
        "http://169.254.169.254/latest/meta-data/",
        "https://huggingface.co.evil.example/",
        "https://nothf.co/",
        "file:///etc/passwd",
        "ftp://huggingface.co/",
    ],
)
def test_a_redirection_elsewhere_is_not_followed(target: str) -> None:
    with running(Host(files)) as elsewhere:
        to = target.format(port=elsewhere.server.server_port)
        with running(redirecting(to)) as hub:
            error = refusal(HuggingFaceHub(10**6, 5, hub.address))
    assert error.reason == "HUB_HOST_NOT_ALLOWED", error.message
    assert elsewhere.asked == []


def test_a_second_redirection_elsewhere_is_not_followed() -> None:
    with (
        running(Host(files)) as elsewhere,
        running(redirecting(f"{elsewhere.address}/{{name}}")) as store,
        running(redirecting(f"http://localhost:{store.server.server_port}/{{name}}")) as hub,
    ):
        error = refusal(HuggingFaceHub(10**6, 5, hub.address, hosts=["localhost"]))
    assert (error.reason, error.metadata) == ("HUB_HOST_NOT_ALLOWED", {"host": "127.0.0.1"})
    assert elsewhere.asked == []
    assert len(store.asked) == 1


def test_a_circle_of_redirections_ends() -> None:
    with running(redirecting("/{name}")) as hub:
        assert refusal(HuggingFaceHub(10**6, 5, hub.address)).reason == "HUB_UNAVAILABLE"
        assert len(hub.asked) < 10


@pytest.mark.parametrize("resolved", ["f" * 40, "main", ""])
def test_a_branch_that_is_named_like_a_commit_is_refused(resolved: str) -> None:
    answer = lambda handler, _: send(handler, 200, config_bytes(), X_Repo_Commit=resolved)  # noqa: E731
    with running(Host(answer)) as hub:
        assert refusal(HuggingFaceHub(10**6, 5, hub.address)).reason == "HUB_NOT_FOUND"


def endless(handler: Handler, _: str) -> None:
    """Announces no length, and never ends."""
    handler.protocol_version = "HTTP/1.0"
    send(handler, 200, Content_Length="")
    try:
        for _number in itertools.count():
            handler.wfile.write(b" " * 65_536)
    except OSError:
        return


def lying(handler: Handler, _: str) -> None:
    send(handler, 200, config_bytes(), Content_Length=str(10**12))


def short(handler: Handler, _: str) -> None:
    send(handler, 200, config_bytes(), Content_Length="100000")


def dripping(stop: threading.Event) -> Callable[[Handler, str], None]:
    def answer(handler: Handler, _: str) -> None:
        send(handler, 200, Content_Length="1000000")
        try:
            while not stop.wait(0.02):
                handler.wfile.write(b" ")
        except OSError:
            return

    return answer


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(endless, "ADAPTER_TOO_LARGE"), (lying, "ADAPTER_TOO_LARGE"), (short, "HUB_UNAVAILABLE")],
)
def test_a_length_that_lies_costs_no_more_than_is_allowed(answer: Any, reason: str) -> None:
    with running(Host(answer)) as hub:
        assert refusal(HuggingFaceHub(10**6, 5, hub.address)).reason == reason


def test_a_file_that_comes_byte_by_byte_is_given_up() -> None:
    """No silence is longer than the hub's patience, so only the limit on the whole ends it."""
    stop = threading.Event()
    with running(Host(dripping(stop))) as hub:
        error = refusal(HuggingFaceHub(10**7, 30, hub.address, download_seconds=0.2))
        stop.set()
    assert error.reason == "HUB_UNAVAILABLE"


def test_a_packed_answer_is_not_unpacked() -> None:
    packed = gzip.compress(bytes(10**8))

    def answer(handler: Handler, name: str) -> None:
        if "tokenizer" in name or "chat" in name:
            send(handler, 404, X_Error_Code="EntryNotFound")
        else:
            send(handler, 200, packed, Content_Encoding="gzip")

    with running(Host(answer)) as hub, HuggingFaceHub(10**6, 5, hub.address).fetched(NAME) as folder:
        assert (folder / CONFIG_FILE).read_bytes() == packed
