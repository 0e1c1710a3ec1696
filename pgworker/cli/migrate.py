"""`pgworker migrate`."""

from __future__ import annotations

import click

from pgworker.cli.bulk import still
from pgworker.cli.database import require_dsn
from pgworker.cli.options import dsn_option

_NEXT = """\
pgworker_owner owns the schema. Logins get their rights from the other roles:
  grant pgworker_enqueuer to ...   enqueues
  grant pgworker_worker to ...     runs pools
  grant pgworker_admin to ...      jobs, queues, dead-letters, status"""


@click.command()
@dsn_option
@click.option("--roles", is_flag=True, help="Also make the roles owner, enqueuer, worker and admin. May be repeated.")
@click.option("print_only", "--print", is_flag=True, help="Print the SQL instead, for psql.")
def migrate(dsn: str | None, roles: bool, print_only: bool) -> None:
    """Bring the database to this package's schema.

    Prints the migrations that were applied. May run any number of times, and from several hosts at once.
    """
    if print_only:
        _print(roles)
        return
    named = require_dsn(dsn)
    from pgworker.db.migrate import migrate as apply
    from pgworker.sql.load import migrations

    with still("applying migrations") as clear:

        def tell(name: str) -> None:
            clear()
            print(f"applied {name}", flush=True)

        applied = apply(named, on_applied=tell)
    if not applied:
        print(f"nothing to do: the schema is at {migrations()[-1].name}")
    if roles:
        from pgworker.db.roles import make_roles

        remarks = make_roles(named)
        print(_NEXT)
        for remark in remarks:
            click.echo(f"pgworker: mind that {remark}", err=True)


def _print(roles: bool) -> None:
    from pgworker.db.migrate import script
    from pgworker.db.roles import script as roles_script
    from pgworker.sql.load import migrations

    print(script(migrations()), end="")
    if roles:
        print("\n" + roles_script(), end="")
