"""`lorauter profile` and `lorauter rollback`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated

import typer

from lorauter import Client
from lorauter.errors import DeadlineExceeded, InvalidArgument, NotFound
from lorauter.identifiers import decode_generation
from lorauter.registry.v1 import registry_pb2 as pb
from lorauter.router.v1.router_pb2 import GetSnapshotResponse
from lorauter_suite.cli.context import JsonFlag, connect, print_json, print_table

POLL_SECONDS = 0.05

app = typer.Typer(help="Routing profiles: what was fitted over the validation sets.", no_args_is_help=True)


def add_commands(root: typer.Typer) -> None:
    """Adds `profile` and `rollback` to the command."""
    root.add_typer(app, name="profile")
    root.command("rollback")(rollback)


@app.command("list")
def list_all(pool: Annotated[str, typer.Argument(help="The pool.")], as_json: JsonFlag = False) -> None:
    """List a pool's profiles, newest first."""
    with connect() as client:
        found = list(client.registry.list_profiles(pool=pool))
    if as_json:
        print_json(found)
        return
    rows = (
        (
            "*" if p.active else "",
            p.digest[:23],
            p.generation,
            " ".join(f"{name}={value:.3g}" for name, value in sorted(p.figures.items())),
        )
        for p in found
    )
    print_table(("", "profile", "generation", "figures"), rows)


def rollback(
    pool: Annotated[str, typer.Argument(help="The pool.")],
    to: Annotated[
        str, typer.Option(help="The profile's digest, or how it begins. Left out: the one before.")
    ] = "",
    auto: Annotated[
        bool, typer.Option("--auto", help="End a rollback: fit the constants again at every change.")
    ] = False,
    wait: Annotated[bool, typer.Option(help="Wait until routers serve it.")] = True,
    timeout: Annotated[float, typer.Option(help="Seconds to wait.")] = 30.0,
) -> None:
    """Restore an earlier profile's constants, on today's tasks and adapters."""
    if to and auto:
        raise typer.BadParameter("give --to or --auto, not both")
    began = time.monotonic()
    with connect() as client:
        digest = "" if auto else _chosen(pool, to, list(client.registry.list_profiles(pool=pool)))
        profile = client.registry.activate_profile(pool=pool, digest=digest)
        if not wait:
            print(f"{profile.digest or 'no profile'} is accepted for {pool}; routers follow")
            return
        served = _served(client, pool, digest, timeout)
    print(f"{served} is active for {pool}, served after {time.monotonic() - began:.1f} s")


def named(pool: str, to: str, profiles: Sequence[pb.Profile]) -> pb.Profile:
    """Returns the profile whose digest begins with ``to``.

    Raises NotFound (PROFILE_NOT_FOUND) or InvalidArgument (PROFILE_AMBIGUOUS).
    """
    listed = f"`lorauter profile list {pool} --json` has them"
    found = [profile for profile in profiles if profile.digest.startswith(to)]
    if not found:
        raise NotFound("PROFILE_NOT_FOUND", f"pool {pool} has no profile {to[:80]!r}: {listed}")
    if len(found) > 1:
        raise InvalidArgument("PROFILE_AMBIGUOUS", f"{len(found)} profiles begin with {to!r}: {listed}")
    return found[0]


def _chosen(pool: str, to: str, newest_first: Sequence[pb.Profile]) -> str:
    """Returns the digest that ``to`` names, or that of the profile before the active one."""
    if to:
        return named(pool, to, newest_first).digest
    active = next((place for place, profile in enumerate(newest_first) if profile.active), None)
    if active is None or active + 1 >= len(newest_first):
        raise NotFound(
            "NO_EARLIER_PROFILE", f"pool {pool} has no profile before the active one: name one with --to"
        )
    return newest_first[active + 1].digest


def _served(client: Client, pool: str, digest: str, timeout: float) -> str:
    """Waits until the router serves the profile, any one if there is no digest; returns which it serves."""
    generation = client.registry.get_generation().generation
    deadline = time.monotonic() + timeout
    while True:
        snapshot = client.router.get_snapshot(pool=pool)
        serves = next((one.profile_digest for one in snapshot.pools), "")
        if is_at(snapshot, generation) and digest in ("", serves):
            return serves
        if time.monotonic() > deadline:
            raise DeadlineExceeded(
                "PROFILE_NOT_SERVED",
                f"the registry has it, but after {timeout:g} s the router is at {snapshot.generation} with "
                f"profile {serves or 'none'}: is a worker of `index` running, or was another one activated?",
            )
        time.sleep(POLL_SECONDS)


def is_at(snapshot: GetSnapshotResponse, generation: str) -> bool:
    """Whether a snapshot of one pool is of the generation, or of a later one of its tenant."""
    return any(
        decode_generation(pool.generation, pool.tenant) >= decode_generation(generation, pool.tenant)
        for pool in snapshot.pools
    )
