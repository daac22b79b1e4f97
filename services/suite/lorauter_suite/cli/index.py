"""`lorauter index`."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from lorauter.errors import DeadlineExceeded
from lorauter_suite.cli.context import err, running

app = typer.Typer(help="The index in Qdrant, which PostgreSQL can always fill again.", no_args_is_help=True)

POLL_SECONDS = 0.1


@app.callback()
def about() -> None:
    """Makes typer ask for the subcommand, although there is only one."""


@app.command("rebuild")
def rebuild(
    qdrant_url: Annotated[str, typer.Option(envvar="QDRANT_URL", help="Default: the embedded suite's.")] = "",
    tenant: Annotated[str, typer.Option(help="Only this tenant's part. Default: all tenants.")] = "",
    timeout: Annotated[float, typer.Option(help="Seconds to wait.")] = 600.0,
) -> None:
    """Empty the index and wait until a worker has filled it again from PostgreSQL.

    A tenant that the registry no longer has is left out, and named when the time to wait is over. Routers go
    on with their last snapshot meanwhile. Embeddings are cached, so nothing is encoded.
    """
    from lorauter.index import QdrantIndex  # its client takes half a second to import

    began = time.monotonic()
    index = QdrantIndex(qdrant_url or running().index_http)
    try:
        tenants = {tenant} if tenant else set(index.markers())
        for each in tenants:
            index.clear(each)
        while not (filled := index.markers().keys()) or not filled >= tenants:
            if time.monotonic() - began > timeout:
                missing = ", ".join(sorted(tenants - filled)) or "everything"
                raise DeadlineExceeded(
                    "INDEX_NOT_REBUILT",
                    f"after {timeout:g} s the index lacks {missing}: is a worker of `index` running, and "
                    "does the registry still have these tenants?",
                )
            time.sleep(POLL_SECONDS)
    finally:
        index.close()
    err.print(f"rebuilt in {time.monotonic() - began:.1f} s")
