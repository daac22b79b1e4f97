"""Adapters from the Hugging Face hub, pinned to a commit; only the files that are looked at."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import disable_progress_bars

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

_NAME = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})@([0-9a-f]{40})")

_HttpError: type[Exception] = HfHubHTTPError.__bases__[0]
"""The base error of whichever HTTP library the hub's client is built on."""


class HuggingFaceHub:
    """Adapters from the Hugging Face hub; ``endpoint`` empty means the library's own."""

    def __init__(self, max_bytes: int, timeout_seconds: float, endpoint: str = "") -> None:
        self._max_bytes = max_bytes
        self._timeout_seconds = timeout_seconds
        self._endpoint = endpoint.rstrip("/") or None
        disable_progress_bars()

    @contextmanager
    def fetched(self, name: str) -> Iterator[Path]:
        """Returns a folder with the two files of ``namespace/name@commit``, gone at the end.

        Those of CHAT_FORMAT_FILES that are there come along.

        Raises InvalidArgument (INVALID_HUB_NAME), NotFound (HUB_NOT_FOUND), PermissionDenied
        (HUB_FORBIDDEN), UnprocessableRequest (ADAPTER_TOO_LARGE) or Unavailable (HUB_UNAVAILABLE).
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
        metadata = get_hf_file_metadata(url, timeout=self._timeout_seconds, endpoint=self._endpoint)
        if metadata.size is None or metadata.size > self._max_bytes:
            raise UnprocessableRequest(
                "ADAPTER_TOO_LARGE", f"{file} has {metadata.size} bytes; {self._max_bytes} are allowed"
            )
        hf_hub_download(
            repository,
            file,
            revision=commit,
            local_dir=folder,
            cache_dir=folder / ".cache",
            etag_timeout=self._timeout_seconds,
            endpoint=self._endpoint,
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
