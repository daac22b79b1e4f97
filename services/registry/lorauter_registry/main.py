"""Boots the registry: `lorauter-registry` serves, `lorauter-registry migrate` brings up the schema."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from lorauter.store.migrate import downgrade, migrate
from lorauter_registry.config import DatabaseSettings


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="lorauter-registry", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    command = commands.add_parser("migrate", help="bring the schema of DATABASE_URL to a revision")
    command.add_argument("--to", default="head", metavar="REV", help="the revision (default: the newest)")
    command.add_argument("--down", action="store_true", help="go back to REV; `base` drops all tables")
    options = parser.parse_args(arguments)
    if options.command == "migrate":
        url = str(DatabaseSettings.load().database_url)
        (downgrade if options.down else migrate)(url, options.to)
        return
    raise SystemExit("not yet")


if __name__ == "__main__":
    main()
