"""`lorauter manifest`."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lorauter import Client
from lorauter.errors import DeadlineExceeded, InvalidArgument, NotFound
from lorauter.registry.v1 import registry_pb2 as pb
from lorauter_suite.cli.context import JsonFlag, connect, out, print_fields, print_json, print_table
from lorauter_suite.cli.policies import read_bytes

POLL_SECONDS = 0.05
_NAME_LENGTH = 20
"""Of a composite's name; digests are cut to it."""

app = typer.Typer(
    help="Pool manifests: what TGI instances load when they start, because they load nothing afterwards.",
    no_args_is_help=True,
)

PoolArgument = Annotated[str, typer.Argument(help="The pool.")]
DigestArgument = Annotated[
    str, typer.Argument(help="The manifest's digest, or how it begins.", show_default=False)
]


class Format(StrEnum):
    """How a manifest is handed to TGI's launcher."""

    env = "env"
    args = "args"
    json = "json"


@app.command("propose")
def propose(
    pool: PoolArgument,
    memory: Annotated[
        str, typer.Option(help="Memory for adapters on each instance, such as 8GiB. Default: the pool's.")
    ] = "",
    as_json: JsonFlag = False,
) -> None:
    """Propose what instances load, from what was measured and what is asked; changes nothing served."""
    memory_bytes = read_bytes(memory, "--memory") if memory else 0
    with connect() as client:
        found = client.registry.propose_pool_manifest(pool=pool, memory_bytes=memory_bytes)
    _show(found, as_json)


@app.command("list")
def list_all(pool: PoolArgument, as_json: JsonFlag = False) -> None:
    """List a pool's manifests, newest first; the one in force is marked."""
    with connect() as client:
        found = list(client.registry.list_pool_manifests(pool=pool))
    if as_json:
        print_json(found)
        return
    rows = (
        (
            "*" if each.published else "",
            each.digest[:23],
            len(each.entries),
            _megabytes(each.size_bytes),
            _percent(each.expected_share),
            each.create_time.ToJsonString()[:19],
            each.publish_time.ToJsonString()[:19] if each.HasField("publish_time") else "-",
        )
        for each in found
    )
    print_table(("", "manifest", "entries", "MB", "of best", "proposed", "published"), rows)


@app.command("show")
def show(pool: PoolArgument, digest: DigestArgument = "", as_json: JsonFlag = False) -> None:
    """Show a manifest; without a digest the newest proposal."""
    with connect() as client:
        found = chosen(pool, digest, client.registry.list_pool_manifests(pool=pool))
    _show(found, as_json)


@app.command("publish")
def publish(
    pool: PoolArgument,
    digest: DigestArgument = "",
    wait: Annotated[bool, typer.Option(help="Wait until routers know it, composites and all.")] = True,
    timeout: Annotated[float, typer.Option(help="Seconds to wait.")] = 60.0,
) -> None:
    """Put a manifest in force, without a digest the newest; instances take it when they are started again."""
    began = time.monotonic()
    with connect() as client:
        found = chosen(pool, digest, client.registry.list_pool_manifests(pool=pool))
        published = client.registry.publish_pool_manifest(pool=pool, digest=found.digest)
        if wait:
            _wait(client, pool, published.digest, timeout)
    said = f"known to routers after {time.monotonic() - began:.1f} s" if wait else "routers follow"
    print(
        f"{published.digest} is in force for {pool}, {said}; start TGI with `lorauter manifest render {pool}`"
    )


@app.command("render")
def render(
    pool: PoolArgument,
    digest: DigestArgument = "",
    form: Annotated[
        Format, typer.Option("--format", help="Environment, launcher flags, or JSON for a chart.")
    ] = Format.env,
    adapters_path: Annotated[
        str, typer.Option(help="Where instances find the adapter store. Default: what their backend says.")
    ] = "",
    store: Annotated[
        Path | None, typer.Option(help="The adapter store here: an entry that it lacks is an error.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write to this file instead.")] = None,
) -> None:
    """Print what TGI is to be started with; without a digest for the manifest in force."""
    from lorauter.manifests import render as launcher  # it needs numpy
    from lorauter.routing.model import ADAPTERS_PATH

    with connect() as client:
        manifests = list(client.registry.list_pool_manifests(pool=pool))
        backends = list(client.registry.list_backends(pool=pool))
    found = chosen(pool, digest, manifests) if digest else in_force(pool, manifests)
    names = [entry.name for entry in found.entries]
    if store is not None:
        _check_store(pool, found.digest, names, store)
    path = adapters_path or _registered_path(backends) or ADAPTERS_PATH
    if form is Format.env:
        text = "\n".join(f"{name}={value}" for name, value in launcher.environment(names, path).items())
    elif form is Format.args:
        text = shlex.join(launcher.arguments(names, path))
    else:
        text = json.dumps(launcher.values(pool, found.digest, names, path), indent=2)
    if output is None:
        print(text)
    else:
        output.write_text(f"{text}\n", encoding="utf-8")


def chosen(pool: str, digest: str, newest_first: Iterable[pb.PoolManifest]) -> pb.PoolManifest:
    """Returns the manifest whose digest begins so, with or without `sha256:`; the newest for an empty one.

    Raises NotFound (MANIFEST_NOT_FOUND) or InvalidArgument (MANIFEST_AMBIGUOUS).
    """
    begins = digest.removeprefix("sha256:")
    found = [each for each in newest_first if each.digest.removeprefix("sha256:").startswith(begins)]
    listed = f"`lorauter manifest list {pool}` has them"
    if not found:
        what = f"no manifest {digest[:80]!r}: {listed}" if digest else "none: propose one first"
        raise NotFound("MANIFEST_NOT_FOUND", f"pool {pool} has {what}")
    if digest and len(found) > 1:
        raise InvalidArgument("MANIFEST_AMBIGUOUS", f"{len(found)} manifests begin with {digest!r}: {listed}")
    return found[0]


def in_force(pool: str, manifests: Sequence[pb.PoolManifest]) -> pb.PoolManifest:
    """Returns the published manifest; raises NotFound (MANIFEST_NOT_FOUND)."""
    found = next((each for each in manifests if each.published), None)
    if found is None:
        raise NotFound(
            "MANIFEST_NOT_FOUND", f"pool {pool} has no published manifest: publish one, or give a digest"
        )
    return found


def _check_store(pool: str, digest: str, names: Sequence[str], store: Path) -> None:
    """Raises NotFound (MANIFEST_ADAPTER_MISSING) where a server would lack an adapter that it is to load."""
    missing = [name for name in names if not (store / name).is_dir()]
    if missing:
        raise NotFound(
            "MANIFEST_ADAPTER_MISSING",
            f"manifest {digest[:23]} of pool {pool} names {missing[0]}, and {len(missing) - 1} more, that "
            f"the adapter store {store} does not have: give the store that the registry writes, or publish "
            f"another manifest (`lorauter manifest propose {pool}`)",
        )


def _registered_path(backends: Sequence[pb.Backend]) -> str:
    active = [
        each
        for each in sorted(backends, key=lambda each: each.id)
        if each.kind == pb.BACKEND_KIND_TGI and each.state == pb.BACKEND_STATE_ACTIVE
    ]
    return active[0].limits.adapters_path if active else ""


def _wait(client: Client, pool: str, digest: str, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while True:
        snapshot = client.router.get_snapshot(pool=pool)
        known = [manifest.digest for one in snapshot.pools for manifest in one.manifests]
        if digest in known[:1]:
            return
        if time.monotonic() > deadline:
            raise DeadlineExceeded(
                "MANIFEST_NOT_ANNOUNCED",
                f"the registry has it, but after {timeout:g} s the router does not: is a worker of `index` "
                "running with LORAUTER_ADAPTER_STORE, and what does its log say of worker.manifest?",
            )
        time.sleep(POLL_SECONDS)


def _show(manifest: pb.PoolManifest, as_json: bool) -> None:
    if as_json:
        print_json(manifest)
        return
    print_fields(
        (
            ("manifest", manifest.digest),
            ("pool", manifest.pool),
            ("in force", _in_force(manifest)),
            ("memory", f"{_megabytes(manifest.size_bytes)} of {_megabytes(manifest.memory_bytes)} MB"),
            ("expected", f"{_percent(manifest.expected_share)} of the score with every adapter loaded"),
            ("before", f"{_percent(manifest.published_share)} by what was in force when it was proposed"),
        )
    )
    rows = (
        (
            each.name[:_NAME_LENGTH],
            _names(each.members),
            each.rank,
            _megabytes(each.size_bytes),
            f"{100 * each.gain:.2f}",
        )
        for each in manifest.entries
    )
    print_table(("name", "adapters", "rank", "MB", "gain %"), rows)
    if manifest.left_out:
        out.print()
        left = ((_names(each.members), f"{100 * each.gain:.2f}", each.reason) for each in manifest.left_out)
        print_table(("left out", "gain %", "why"), left)


def _in_force(manifest: pb.PoolManifest) -> str:
    if not manifest.published:
        return "no"
    since = manifest.publish_time.ToJsonString()
    written = manifest.HasField("write_time")
    return f"since {since}" if written else f"since {since}, but its composites are not written yet"


def _names(members: Sequence[pb.ManifestMember]) -> str:
    if len(members) == 1 and members[0].weight == 1:
        return f"{members[0].adapter_id}@{members[0].version}"
    return " + ".join(f"{each.weight:g} {each.adapter_id}@{each.version}" for each in members)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.2f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
