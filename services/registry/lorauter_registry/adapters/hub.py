"""Adapters from the Hugging Face hub, pinned to a commit; only the files that are looked at."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from huggingface_hub import constants, get_session, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

from lorauter.errors import (
    InvalidArgument,
    LorauterError,
    NotFound,
    PermissionDenied,
    Unavailable,
    UnprocessableRequest,
)
from lorauter.lora.chat_format import CHAT_FORMAT_FILES
from lorauter.lora.check import CONFIG_FILE, WEIGHTS_FILE
from lorauter_registry.ports import DOWNLOAD_SECONDS, PUBLIC_HOSTS

MAX_REDIRECTS = 5

_NAME = re.compile(
    r"((?!\S*(?:\.\.|--|\.git@))[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})@([0-9a-f]{40})", re.ASCII
)
"""What the hub's own client takes as an id, and a commit; only the latter may not move."""

_HttpError: type[Exception] = HfHubHTTPError.__bases__[0]
"""The base error of whichever HTTP library the hub's client is built on."""


class HuggingFaceHub:
    """Adapters from the Hugging Face hub; ``endpoint`` empty means the library's own.

    Wherever the hub sends us, nothing is fetched but from its host, ``hosts`` and those below them.
    At most ``max_bytes`` are read of a file, in at most ``download_seconds``; ``timeout_seconds`` is how long
    the hub may be silent.
    """

    def __init__(
        self,
        max_bytes: int,
        timeout_seconds: float,
        endpoint: str = "",
        hosts: Sequence[str] = PUBLIC_HOSTS,
        download_seconds: float = DOWNLOAD_SECONDS,
    ) -> None:
        self._max_bytes = max_bytes
        self._timeout_seconds = timeout_seconds
        self._endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
        self._hosts = tuple(hosts)
        self._download_seconds = download_seconds

    @contextmanager
    def fetched(self, name: str) -> Iterator[Path]:
        """Returns a folder with the two files of ``namespace/name@commit``, gone at the end.

        Those of CHAT_FORMAT_FILES that are there come along.

        Raises InvalidArgument (INVALID_HUB_NAME), NotFound (HUB_NOT_FOUND), PermissionDenied
        (HUB_FORBIDDEN, HUB_HOST_NOT_ALLOWED), UnprocessableRequest (ADAPTER_TOO_LARGE) or Unavailable
        (HUB_UNAVAILABLE).
        """
        match = _NAME.fullmatch(name)
        if match is None:
            raise InvalidArgument(
                "INVALID_HUB_NAME",
                "hub is not `namespace/name@commit` with the commit's 40 hex digits: "
                "branches and tags move, so they are not taken",
                field="hub",
            )
        with tempfile.TemporaryDirectory(prefix="lorauter-hub-") as folder:
            try:
                for file in (CONFIG_FILE, WEIGHTS_FILE):
                    self._download(match[1], match[2], file, Path(folder))
                for file in CHAT_FORMAT_FILES:
                    with suppress(EntryNotFoundError):
                        self._download(match[1], match[2], file, Path(folder))
            except (_HttpError, HFValidationError, OSError, ValueError) as error:
                raise _translated(error, name) from error
            yield Path(folder)

    def _download(self, repository: str, commit: str, file: str, folder: Path) -> None:
        url = hf_hub_url(repository, file, revision=commit, endpoint=self._endpoint)
        deadline = time.monotonic() + self._download_seconds
        with self._answered(url, commit) as response, (folder / file).open("xb") as target:
            announced = int(response.headers.get("Content-Length", -1))
            self._check_size(file, announced)
            copied = 0
            # Not unpacked, should it be packed against our wish: a small answer cannot become a large file.
            for data in response.iter_raw():
                copied += len(data)
                self._check_size(file, copied)
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{file} takes over {self._download_seconds} s")
                target.write(data)
            if copied != announced >= 0:
                raise OSError(f"{file} broke off")

    @contextmanager
    def _answered(self, url: str, commit: str) -> Iterator[Any]:
        """Returns the answer at the end of all redirections, if the hub says that it is the commit's.

        What was asked for is not enough: a branch may be named like a commit.
        """
        headers = build_hf_headers() | {"Accept-Encoding": "identity"}
        resolved = None
        for _ in range(MAX_REDIRECTS + 1):
            own = self._check_host(url)
            sent = (
                headers if own else {key: headers[key] for key in headers if key.lower() != "authorization"}
            )
            with get_session().stream(
                "GET", url, headers=sent, timeout=self._timeout_seconds, follow_redirects=False
            ) as response:
                hf_raise_for_status(response)
                if own:
                    resolved = response.headers.get(constants.HUGGINGFACE_HEADER_X_REPO_COMMIT) or resolved
                if not response.has_redirect_location:
                    if resolved != commit:
                        raise _another_commit(commit, resolved)
                    yield response
                    return
                url = urljoin(url, response.headers["Location"])
        raise OSError("the hub redirects in circles")

    def _check_host(self, url: str) -> bool:
        """Returns whether it is the hub's own address; raises PermissionDenied if it may not be asked."""
        wanted, hub = urlsplit(url), urlsplit(self._endpoint)
        if (wanted.scheme, wanted.netloc) == (hub.scheme, hub.netloc):
            return True
        host = wanted.hostname or ""
        if wanted.scheme not in ("https", hub.scheme) or not any(
            host == one or host.endswith(f".{one}") for one in self._hosts
        ):
            raise PermissionDenied(
                "HUB_HOST_NOT_ALLOWED",
                f"the hub sends us to {wanted.scheme}://{host[:100]}, which is not allowed: if it belongs to "
                "your hub, name it in LORAUTER_HUB_HOSTS",
                host=host[:100],
            )
        return False

    def _check_size(self, file: str, size: int) -> None:
        if size > self._max_bytes:
            raise UnprocessableRequest(
                "ADAPTER_TOO_LARGE", f"{file} has {size} bytes or more; {self._max_bytes} are allowed"
            )


def _another_commit(commit: str, resolved: str | None) -> NotFound:
    return NotFound(
        "HUB_NOT_FOUND",
        f"the hub answers with {str(resolved)[:60]!a} where commit {commit} was asked for: a branch may have "
        "that name; give the commit that it stands for",
    )


def _translated(error: Exception, name: str) -> LorauterError:
    if isinstance(error, GatedRepoError):
        return PermissionDenied(
            "HUB_FORBIDDEN", f"{name}: the hub wants a token: set HF_TOKEN for the registry, or use a path"
        )
    if isinstance(error, RepositoryNotFoundError | RevisionNotFoundError | HFValidationError) or (
        isinstance(error, EntryNotFoundError) and isinstance(error, HfHubHTTPError)
    ):
        return NotFound(
            "HUB_NOT_FOUND",
            f"{name}: the hub has no such repository, commit or file; an adapter needs {CONFIG_FILE} and "
            f"{WEIGHTS_FILE}",
        )
    return Unavailable(
        "HUB_UNAVAILABLE",
        f"{name}: the Hugging Face hub does not answer: retry later, or download the adapter and give a path",
    )
