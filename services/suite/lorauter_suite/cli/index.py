"""`lorauter index`."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from lorauter.errors import DeadlineExceeded
from lorauter_suite.cli.context import err, running

app = typer.Typer(help="The index in Qdrant, which PostgreSQL can always fill again.", no_args_is_help=True)

TENANT = "default"
POLL_SECONDS = 0.1


@app.callback()
def about() -> None:
    """Makes typer ask for the subcommand, although there is only one."""


@app.command("rebuild")
def rebuild(
    qdrant_url: Annotated[str, typer.Option(envvar="QDRANT_URL", help="Default: the embedded suite's.")] = "",
    timeout: Annotated[float, typer.Option(help="Seconds to wait.")] = 600.0,
) -> None:
    """Empty the index and wait until a worker has filled it again from PostgreSQL.

    Routers go on with their last snapshot meanwhile. Embeddings are cached, so nothing is encoded.
    """
    from lorauter.index import QdrantIndex  # its client takes half a second to import

    began = time.monotonic()
    index = QdrantIndex(qdrant_url or running().index_http)
    try:
        index.clear(TENANT)
        while index.published(TENANT) is None:
            if time.monotonic() - began > timeout:
                raise DeadlineExceeded(
                    "INDEX_NOT_REBUILT",
                    f"the index is empty after {timeout:g} s: is a worker of `index` running?",
                )
            time.sleep(POLL_SECONDS)
    finally:
        index.close()
    err.print(f"rebuilt in {time.monotonic() - began:.1f} s")
