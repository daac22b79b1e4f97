"""`lorauter profile` and `lorauter rollback`."""

from __future__ import annotations

from typing import Annotated

import typer

from lorauter.errors import NotFound
from lorauter_suite.cli.context import JsonFlag, connect, print_json, print_table

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
    to: Annotated[str, typer.Option(help="The profile's digest. Left out: the one before.")] = "",
) -> None:
    """Restore an earlier profile's constants, on today's tasks and adapters."""
    with connect() as client:
        digest = to or _one_before(
            pool, [(p.digest, p.active) for p in client.registry.list_profiles(pool=pool)]
        )
        profile = client.registry.activate_profile(pool=pool, digest=digest)
    print(f"{profile.digest} is active for {pool}")


def _one_before(pool: str, newest_first: list[tuple[str, bool]]) -> str:
    active = next((place for place, (_, is_active) in enumerate(newest_first) if is_active), None)
    if active is None or active + 1 >= len(newest_first):
        raise NotFound("NO_EARLIER_PROFILE", f"pool {pool} has no profile before the active one")
    return newest_first[active + 1][0]
