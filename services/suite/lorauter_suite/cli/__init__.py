"""The command `lorauter`: one module for each noun of the registry, and one for running the suite."""

from __future__ import annotations

import sys

import typer

from lorauter.errors import LorauterError
from lorauter_suite.cli import (
    adapters,
    affinities,
    archives,
    backends,
    index,
    keys,
    manifests,
    operations,
    pools,
    profiles,
    replay,
    run,
    seed,
    serving,
    tasks,
)

EXIT_REFUSED = 1
"""The suite answered with an error."""
EXIT_USAGE = 2
"""The command line was wrong (set by typer)."""
EXIT_UNREACHABLE = 3
"""Nothing answered."""

app = typer.Typer(
    name="lorauter",
    help="One base model, many LoRA adapters, routed by measurement.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
run.add_commands(app)
seed.add_commands(app)
serving.add_commands(app)
operations.add_commands(app)
profiles.add_commands(app)
replay.add_commands(app)
archives.add_commands(app)
keys.add_commands(app)
app.add_typer(pools.app, name="pool")
app.add_typer(backends.app, name="backend")
app.add_typer(manifests.app, name="manifest")
app.add_typer(tasks.app, name="task")
app.add_typer(adapters.app, name="adapter")
app.add_typer(affinities.app, name="affinity")
app.add_typer(index.app, name="index")
app.add_typer(keys.app, name="key")


def main() -> None:
    """Runs a command.

    Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 nothing answered, 4 an operation that ended
    before its work was done, 130 interrupted.
    """
    try:
        app()
    except LorauterError as error:
        print(f"lorauter: {error.message} ({error.reason})", file=sys.stderr)
        raise SystemExit(EXIT_UNREACHABLE if error.http_status == 503 else EXIT_REFUSED) from None
