"""How a Qdrant server is reached."""

from __future__ import annotations

import math
import warnings
from urllib.parse import unquote, urlsplit

from qdrant_client import QdrantClient


def connect(url: str, timeout_seconds: float) -> QdrantClient:
    """Returns a client of the server at ``url``; an API key stands where URLs have passwords.

    ``https://:key@host:6333`` sends ``key`` as Qdrant's header ``api-key``. Nothing is asked yet.
    """
    parts = urlsplit(url)
    key = unquote(parts.password or "") or None
    address = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    with warnings.catch_warnings():
        # whoever gives a key over plain HTTP has a network that nobody else reaches
        warnings.filterwarnings("ignore", message="Api key is used with an insecure connection")
        return QdrantClient(
            url=address,
            api_key=key,
            timeout=math.ceil(timeout_seconds),
            check_compatibility=False,
            trust_env=False,
        )
