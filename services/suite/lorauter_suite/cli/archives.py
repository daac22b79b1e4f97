"""`lorauter export` and `lorauter import`: a whole registry in one file."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from lorauter.errors import AlreadyExists, LorauterError, NotFound
from lorauter.registry.v1 import registry_pb2 as pb
from lorauter_suite.cli.context import JsonFlag, connect, err, print_table, to_dict

STREAM = Path("-")
"""Means standard output, or input."""

PIECE_BYTES = 512 * 1024


def add_commands(root: typer.Typer) -> None:
    """Adds `export` and `import` to the command."""
    root.command("export")(export_registry)
    root.command("import")(import_registry)


def export_registry(
    file: Annotated[Path, typer.Argument(help="The archive to write; `-` is standard output.")],
    without_weights: Annotated[
        bool, typer.Option("--without-weights", help="Leave adapters' files out; the store has them.")
    ] = False,
    without_embeddings: Annotated[
        bool, typer.Option("--without-embeddings", help="Leave vectors out; they are encoded anew then.")
    ] = False,
    with_keys: Annotated[
        bool, typer.Option("--with-keys", help="Take the API keys along, as digests.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Write all that the registry holds into one archive, which `lorauter import` reads.

    Pools, backends, tasks with their validation sets, adapters with their files, what was measured, profiles,
    manifests, and the vectors of validation inputs, as of one moment.
    """
    if file != STREAM and file.exists() and not force:
        raise AlreadyExists("FILE_EXISTS", f"{file} exists: name another file, or give --force")
    with connect() as client, _writing(file) as target, _progress("exporting") as (progress, bar):
        contents = pb.RegistryContents()
        pieces = client.registry.export_registry(
            without_weights=without_weights, without_embeddings=without_embeddings, with_keys=with_keys
        )
        for piece in pieces:
            if piece.HasField("contents"):
                contents = piece.contents
            target.write(piece.data)
            progress.update(bar, total=piece.total_bytes, advance=len(piece.data))
    _show(contents, as_json and file != STREAM, quiet=file == STREAM)


def import_registry(
    file: Annotated[Path, typer.Argument(help="The archive to read; `-` is standard input.")],
    with_keys: Annotated[
        bool, typer.Option("--with-keys", help="Take the archive's API keys, which then work here.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Fill an empty registry from an archive: all of it, or on any error nothing.

    Workers then fill the index. Nothing is measured anew, and nothing encoded if the archive has the vectors.
    """
    with connect() as client, _reading(file) as (source, size), _progress("importing") as (progress, bar):
        progress.update(bar, total=size)

        def pieces() -> Iterator[bytes]:
            while piece := source.read(PIECE_BYTES):
                progress.advance(bar, len(piece))
                yield piece
            progress.update(bar, description="writing it down")

        contents = client.registry.import_registry(pieces(), with_keys=with_keys)
    _show(contents, as_json)


@contextmanager
def _writing(file: Path) -> Iterator[IO[bytes]]:
    """Yields what becomes the file when all went well; only its owner may read it."""
    if file == STREAM:
        yield sys.stdout.buffer
        return
    building = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        descriptor = os.open(building, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as target:
            yield target
            target.flush()
            os.fsync(descriptor)
        building.replace(file)
    except OSError as error:
        raise LorauterError("FILE_NOT_WRITTEN", f"{file} cannot be written: {error.strerror}") from None
    finally:
        building.unlink(missing_ok=True)


@contextmanager
def _reading(file: Path) -> Iterator[tuple[IO[bytes], int | None]]:
    """Yields the archive and, where it is known, its size."""
    if file == STREAM:
        yield sys.stdin.buffer, None
        return
    try:
        source = file.open("rb")
    except OSError as error:
        raise NotFound("FILE_NOT_READ", f"{file} cannot be read: {error.strerror}") from None
    with source:
        yield source, os.fstat(source.fileno()).st_size


@contextmanager
def _progress(description: str) -> Iterator[tuple[Progress, TaskID]]:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err) as progress:
        yield progress, progress.add_task(description, total=None)


def _show(contents: pb.RegistryContents, as_json: bool, quiet: bool = False) -> None:
    if as_json:
        plain = to_dict(contents)
        plain["rows"] = {name: int(count) for name, count in sorted(plain["rows"].items())}
        print(json.dumps({**plain, "adapters": int(plain["adapters"])}, indent=2))
    elif not quiet:
        rows = [(name.replace("_", " "), f"{count:,}") for name, count in sorted(contents.rows.items())]
        print_table(("table", "rows"), [*rows, ("adapters with files", f"{contents.adapters:,}")])
