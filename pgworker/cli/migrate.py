"""`pgworker migrate`."""

from __future__ import annotations

import click

from pgworker.cli.database import require_dsn
from pgworker.cli.options import dsn_option


@click.command()
@dsn_option
@click.option("print_only", "--print", is_flag=True, help="Print the SQL of all migrations instead, for psql.")
def migrate(dsn: str | None, print_only: bool) -> None:
    """Bring the database to this package's schema.

    Prints the migrations that were applied. May run any number of times, and from several hosts at once.
    """
    from pgworker.sql.load import migrations

    if print_only:
        from pgworker.db.migrate import script

        print(script(migrations()), end="")
        return
    named = require_dsn(dsn)
    from pgworker.db.migrate import migrate as apply

    applied = apply(named)
    for name in applied:
        print(f"applied {name}")
    if not applied:
        print(f"nothing to do: the schema is at {migrations()[-1].name}")
