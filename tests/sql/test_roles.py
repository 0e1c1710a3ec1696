"""`pgworker migrate --roles`: who owns what, and every statement that a role may not run, tried as a login that has it.

Nothing here is proved as a superuser, whom no grant stops. Superusers only set the scene, and look at it afterwards.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgworker.app.app import App
from pgworker.db import embedded
from pgworker.db.connect import check_schema
from pgworker.db.migrate import migrate, script
from pgworker.db.roles import make_roles
from pgworker.db.roles import script as roles_script
from pgworker.errors import ConfigurationError, DatabaseUnavailable
from pgworker.sql import load
from pgworker.sql.load import Migration
from tests.sql.actors import ask, enqueue

Login = Callable[..., str]

ROLES = ("pgworker_enqueuer", "pgworker_worker", "pgworker_admin")
COMMANDS = ("select", "insert", "update", "delete", "truncate")
OURS = "'pgworker'::regnamespace"
NO_PARTITION = "relname !~ '_[0-9]{8}(_|$)'"

# What each role may do to each table and view; whatever is not here must be refused.
RIGHTS: dict[str, dict[str, str]] = {
    "pgworker_enqueuer": {},
    "pgworker_worker": {
        "jobs": "select",
        "job_queue": "select insert update delete",
        "job_leases": "select insert update delete",
        "job_executions": "select insert",
        "dead_letter_jobs": "select insert",
        "worker_heartbeats": "select insert update delete",
        "queues": "select",
        "job_progress": "select insert update delete",
        "dead_letter_hooks": "select insert update delete",
        "served_tasks": "select insert update delete",
    },
    "pgworker_admin": {
        "jobs": "select insert",
        "job_queue": "select insert update delete",
        "job_leases": "select update",
        "job_executions": "select insert",
        "dead_letter_jobs": "select delete",
        "worker_heartbeats": "select",
        "queues": "select insert update delete",
        "schema_migrations": "select",
        "job_status": "select",
        "executions": "select",
        "job_progress": "select delete",
        "dead_letter_hooks": "select",
        "served_tasks": "select",
    },
}
CALLS: dict[str, str] = {
    "pgworker_enqueuer": "enqueue enqueue_jobs enqueue_many schema_version current_org protect_table",
    "pgworker_worker": (
        "enqueue enqueue_jobs enqueue_many schema_version current_org protect_table create_partition job_status"
        " somebody_sleeps is_suspect last_execution stored_job is_recorded"
        " uuid7_first count_default_jobs list_expired_partitions watch_expired_partitions drop_expired_partitions"
    ),
    "pgworker_admin": (
        "enqueue enqueue_jobs enqueue_many schema_version current_org protect_table job_status"
        " uuid7_first list_expired_partitions watch_expired_partitions drop_expired_partitions"
    ),
}
FOR_THE_OWNER_ALONE = [
    "create table pgworker.mine ()",
    "create view pgworker.mine as select 1",
    "create function pgworker.mine() returns int language sql return 1",
    "create type pgworker.mine as enum ('a')",
    "create operator pgworker.=== (function = pg_catalog.texteq, leftarg = text, rightarg = text)",
    "create schema mine",
    "create role mine",
    "create foreign data wrapper mine",
    "create index on pgworker.jobs (task)",
    "create trigger mine before insert on pgworker.jobs execute function suppress_redundant_updates_trigger()",
    "create policy mine on pgworker.jobs",
    "create table public.mine (of_type pgworker.execution_outcome)",
    "create table public.mine (id uuid references pgworker.jobs)",
    "alter schema pgworker rename to mine",
    "alter table pgworker.job_queue add column mine integer",
    "alter table pgworker.job_leases owner to current_user",
    "alter table pgworker.jobs disable trigger all",
    "alter table pgworker.jobs enable row level security",
    "alter table pgworker.jobs detach partition pgworker.jobs_default",
    "alter type pgworker.execution_outcome add value 'mine'",
    "alter function pgworker.enqueue security invoker",
    "alter function pgworker.create_partition(date) set search_path = public",
    "alter default privileges for role pgworker_owner grant select on tables to public",
    "create or replace function pgworker.schema_version() returns integer language sql return 1",
    "comment on table pgworker.jobs is 'mine'",
    "reindex table pgworker.jobs",
    "drop table pgworker.job_queue",
    "drop view pgworker.executions",
    "drop function pgworker.enqueue",
    "drop type pgworker.execution_outcome cascade",
    "drop schema pgworker cascade",
    "drop role pgworker_owner",
    "set role pgworker_owner",
    "set session authorization postgres",
    "grant pgworker_owner to current_user",
    "alter role current_user superuser",
    "alter role pgworker_owner login",
    "select pg_reload_conf()",
    "set session_replication_role = replica",
    "copy (select 1) to program 'true'",
    "copy pgworker.jobs to '/tmp/jobs'",
    "select pg_read_file('/etc/passwd')",
    "select from elsewhere.secrets",
    "select elsewhere.whisper()",
    "select from pgworker.jobs_default",
    "insert into pgworker.job_executions_default default values",
    "delete from pgworker.schema_migrations",
]


def state_of(connection: psycopg.Connection[Any], statement: str | sql.Composed) -> str:
    """The SQLSTATE that a statement ends with, "" if with none; nothing of it stays."""
    try:
        with connection.transaction(force_rollback=True):
            connection.execute(statement.encode() if isinstance(statement, str) else statement)
    except psycopg.Error as error:
        return error.sqlstate or str(error)
    return ""


def relations(connection: psycopg.Connection[Any]) -> list[tuple[str, str, str]]:
    """Tables and views: name, kind, first column; without the partitions of days."""
    return ask(
        connection,
        f"""select relname, relkind::text, attname
            from pg_class join pg_attribute on attrelid = pg_class.oid and attnum = 1
            where relnamespace = {OURS} and relkind in ('r', 'p', 'v', 'm', 'S') and {NO_PARTITION} order by relname""",
    )


def calls(connection: psycopg.Connection[Any]) -> list[tuple[str, str]]:
    """Of each function its name, and a call of it with nulls that the planner can't foresee."""
    return ask(
        connection,
        f"""select proname, concat('select pgworker.', proname, '(',
                   (select string_agg('(select null::' || format_type(type, null) || ')', ', ' order by place)
                    from unnest(proargtypes) with ordinality as argument(type, place)), ')')
            from pg_proc where pronamespace = {OURS} and prorettype <> 'trigger'::regtype
            order by oid::regprocedure::text""",
    )


def attempt(name: str, command: str, column: str) -> sql.Composed:
    table, first = sql.Identifier("pgworker", name), sql.Identifier(column)
    return {
        "select": sql.SQL("select from {}").format(table),
        "insert": sql.SQL("insert into {} default values").format(table),
        "update": sql.SQL("update {} set {} = default where false").format(table, first),
        "delete": sql.SQL("delete from {} where false").format(table),
        "truncate": sql.SQL("truncate {}").format(table),
    }[command]


def owners(connection: psycopg.Connection[Any]) -> set[str]:
    """Whoever owns anything of the schema, or the schema."""
    return set(
        ask(
            connection,
            f"""select nspowner::regrole::text from pg_namespace where nspname = 'pgworker'
                union select relowner::regrole::text from pg_class where relnamespace = {OURS}
                union select typowner::regrole::text from pg_type where typnamespace = {OURS}
                union select proowner::regrole::text from pg_proc where pronamespace = {OURS}""",
        )
    )


def grants(connection: psycopg.Connection[Any]) -> list[str]:
    """All rights in the schema: on what, whose, which."""
    return ask(
        connection,
        f"""select concat_ws(' ', what, case grantee when 0 then 'public' else grantee::regrole::text end,
                             privilege_type)
            from (select 'schema' as what, (aclexplode(nspacl)).* from pg_namespace where nspname = 'pgworker'
                  union all
                  select oid::regclass::text, (aclexplode(relacl)).* from pg_class where relnamespace = {OURS}
                  union all
                  select oid::regtype::text, (aclexplode(coalesce(typacl, acldefault('T', typowner)))).*
                  from pg_type where typnamespace = {OURS} and typtype in ('e', 'd')
                  union all
                  select oid::regprocedure::text, (aclexplode(coalesce(proacl, acldefault('f', proowner)))).*
                  from pg_proc where pronamespace = {OURS}) as granted
            order by 1""",
    )


# -- who owns, and who may do what


def test_everything_belongs_to_the_owner_and_a_second_time_changes_nothing(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        assert owners(connection) == {"postgres"}
        make_roles(dsn)
        assert owners(connection) == {"pgworker_owner"}
        before = grants(connection)
        make_roles(dsn)
        assert grants(connection) == before
        assert ask(connection, "select count(*) from pg_roles where rolname ~ '^pgworker_' and rolcanlogin") == [0]


@pytest.mark.parametrize("role", ROLES)
def test_a_role_may_run_its_commands_on_its_tables_and_no_other(login: Login, role: str) -> None:
    with psycopg.connect(login(role), autocommit=True) as connection:
        found = relations(connection)
        assert {name for name, _, _ in found} >= set(RIGHTS[role])
        for name, kind, column in found:
            allowed = RIGHTS[role].get(name, "").split()
            for command in ("select",) if kind in "vm" else COMMANDS:
                state = state_of(connection, attempt(name, command, column))
                assert (state != "42501") == (command in allowed), f"{role}: {command} {name}: {state}"


@pytest.mark.parametrize("role", ROLES)
def test_a_role_may_call_its_functions_and_no_other(login: Login, role: str) -> None:
    with psycopg.connect(login(role), autocommit=True) as connection:
        found = calls(connection)
        assert {name for name, _ in found} >= set(CALLS[role].split())
        for name, call in found:
            state = state_of(connection, call)
            assert (state != "42501") == (name in CALLS[role].split()), f"{role}: {call}: {state}"


@pytest.mark.parametrize("role", ROLES)
def test_what_only_the_owner_may_is_refused(roles_dsn: str, login: Login, role: str) -> None:
    with psycopg.connect(roles_dsn, autocommit=True) as connection:
        connection.execute("create schema elsewhere")
        connection.execute("create table elsewhere.secrets ()")
        connection.execute("create function elsewhere.whisper() returns text language sql return 'secret'")
        connection.execute("grant create on schema public to public")
    with psycopg.connect(login(role), autocommit=True) as connection:
        states = {statement: state_of(connection, statement) for statement in FOR_THE_OWNER_ALONE}
        assert {statement: state for statement, state in states.items() if state != "42501"} == {}


def test_a_login_without_a_role_can_not_even_look(login: Login) -> None:
    with psycopg.connect(login(), autocommit=True) as connection:
        names = [f"pgworker.{name}" for name, _, _ in relations(connection)]
        states = {state_of(connection, f"select from {name}") for name in names}
        assert states | {state_of(connection, call) for _, call in calls(connection)} == {"42501"}


def test_the_owner_can_do_all_of_it(login: Login) -> None:
    """Else the tests above would refuse what nobody can."""
    with psycopg.connect(login("pgworker_owner"), autocommit=True) as connection:
        for name, kind, column in relations(connection):
            for command in ("select",) if kind in "vm" else COMMANDS:
                assert state_of(connection, attempt(name, command, column)) != "42501"
        assert {state_of(connection, call) for _, call in calls(connection)} & {"42501"} == set()
        assert state_of(connection, "drop table pgworker.job_queue cascade") == ""


def test_every_table_function_and_type_is_named_in_the_file_of_grants_and_nothing_else(roles_dsn: str) -> None:
    statements = re.sub(r"--.*", "", load.script("grants"))
    with psycopg.connect(roles_dsn, autocommit=True) as connection:
        tables = {name for name, _, _ in relations(connection)}
        functions = set(ask(connection, f"select proname from pg_proc where pronamespace = {OURS}"))
        types = set(
            ask(connection, f"select typname from pg_type where typnamespace = {OURS} and typtype in ('e', 'd')")
        )
    assert set(re.findall(r"pgworker\.(\w+)", statements)) == tables | functions | types
    called = re.findall(r"on function ([^;]*?)\s(?:to|from)\s", statements)
    assert {name for names in called for name in re.findall(r"pgworker\.(\w+)", names)} == functions


@pytest.mark.parametrize("with_roles", [False, True])
def test_public_may_call_two_functions_and_nothing_else(dsn: str, with_roles: bool) -> None:
    if with_roles:
        make_roles(dsn)
    with psycopg.connect(dsn, autocommit=True) as connection:
        opened = {line for line in grants(connection) if line.split()[-2] == "public"}
    types = "execution_outcome queue_name task_name priority attempts milliseconds payload headers org_id job_key"
    usage = {f"pgworker.{name} public USAGE" for name in types.split()}  # they are reached through the schema only
    functions = {"pgworker.current_org() public EXECUTE", "pgworker.protect_table(regclass,name) public EXECUTE"}
    assert opened == functions | (set() if with_roles else usage)


# -- those who enqueue, and the ones who look after


def test_an_enqueuer_enqueues_in_every_way_there_is(roles_dsn: str, login: Login) -> None:
    theirs = login("pgworker_enqueuer")
    app = App(theirs)

    @app.task(name="shop.greet")
    def greet(name: str) -> None: ...

    greet.enqueue("Ada")
    assert len(app.enqueue_many([greet.job(str(number)) for number in range(2500)])) == 2500
    assert len(greet.enqueue_many({"name": str(number)} for number in range(2500))) == 2500
    app.close()
    with psycopg.connect(theirs) as connection:
        check_schema(connection)
        greet.using(connection).enqueue("Grace")
        connection.execute("""select pgworker.enqueue('shop.greet', '{"name": "Joan"}', org_id => 'acme')""")
    with psycopg.connect(roles_dsn) as connection:
        assert ask(connection, "select count(*) from pgworker.job_queue") == [5003]


def test_a_partition_that_a_worker_makes_belongs_to_the_owner(roles_dsn: str, login: Login) -> None:
    with psycopg.connect(login("pgworker_worker"), autocommit=True) as connection:
        assert ask(connection, "select pgworker.create_partition('2031-01-01')") == [True]
        assert state_of(connection, "select from pgworker.jobs_20310101") == "42501"
        assert state_of(connection, "drop table pgworker.jobs_20310101") == "42501"
    with psycopg.connect(roles_dsn) as connection:
        assert owners(connection) == {"pgworker_owner"}


# -- functions that act with the owner's rights


DEFINERS = "from pg_proc where pronamespace = 'pgworker'::regnamespace and prosecdef"


def test_functions_with_the_owners_rights_have_a_fixed_search_path(roles_dsn: str) -> None:
    with psycopg.connect(roles_dsn) as connection:
        assert ask(connection, f"select count(*) > 2 {DEFINERS}") == [True]
        lax = f"select proname {DEFINERS} and not 'search_path=pg_catalog, pg_temp' = any (coalesce(proconfig, '{{}}'))"
        assert ask(connection, lax) == []


TRAP = "language plpgsql as $$ begin raise exception 'trapped as %', current_user; end $$"
TRAPS = [
    "grant usage on schema evil to public",  # who may not use a schema doesn't look there
    # functions that ours call: the same types, or closer ones than those of the catalogs
    f"create function evil.clock_timestamp() returns timestamptz {TRAP}",
    f"create function evil.abs(double precision) returns double precision {TRAP}",
    f"create function evil.abs(numeric) returns numeric {TRAP}",
    f"create function evil.array_agg(uuid) returns uuid[] {TRAP}",
    f"create function evil.unnest(uuid[]) returns setof uuid {TRAP}",
    f"create function evil.hashtext(text) returns integer {TRAP}",
    f"create function evil.pg_try_advisory_lock(integer, integer) returns boolean {TRAP}",
    f"create function evil.pg_advisory_xact_lock(integer, integer) returns void {TRAP}",
    f"create function evil.pg_notify(text, text) returns void {TRAP}",
    f"create function evil.to_regclass(text) returns regclass {TRAP}",
    f"create function evil.to_char(date, text) returns text {TRAP}",
    f"create function evil.format(text, text, text) returns text {TRAP}",
    f"create function evil.encode(bytea, text) returns text {TRAP}",
    f"create function evil.gen_random_uuid() returns uuid {TRAP}",
    f"create function evil.max(integer) returns integer {TRAP}",
    f"create function evil.nullif(text, text) returns text {TRAP}",
    f"create function evil.current_setting(text, boolean) returns text {TRAP}",
    f"create function evil.trapped(text, text) returns boolean {TRAP}",
    f"create function evil.trapped(text, text, text) returns text {TRAP}",
    f"create function evil.trapped_sum(date, integer) returns date {TRAP}",
    f"create function evil.trapped_time(timestamptz, timestamptz) returns boolean {TRAP}",
    "create operator evil.<> (function = evil.trapped, leftarg = text, rightarg = text)",
    "create operator evil.= (function = evil.trapped, leftarg = text, rightarg = text)",
    "create operator evil.+ (function = evil.trapped_sum, leftarg = date, rightarg = integer)",
    "create operator evil.<= (function = evil.trapped_time, leftarg = timestamptz, rightarg = timestamptz)",
    "create table evil.jobs ()",
    # relations and types of this session's own, which a search path finds first unless it says otherwise
    "create temp table jobs (id uuid, run_at timestamptz)",
    "create temp table job_queue (job_id uuid)",
    "create temp table schema_migrations (version integer)",
    "create temp table queues (name text)",
    "create temp table pg_class (relname text)",
    "create domain pg_temp.date as text check (false)",
    "create domain pg_temp.timestamptz as text check (false)",
    "create domain pg_temp.uuid as text check (false)",
]
DEFINERS_CALLED = [
    """select pgworker.enqueue('t', '{"a": 1}', run_at => pg_catalog.clock_timestamp())""",
    "select pgworker.enqueue('t', id => %(id)s::pg_catalog.uuid)",
    "select pgworker.schema_version()",
    "select pgworker.create_partition(pg_catalog.date '2032-02-02')",
    "select pgworker.job_status(%(id)s::pg_catalog.uuid)",
    "select pgworker.current_org()",
]


@pytest.fixture
def trapper(roles_dsn: str, login: Login) -> Iterator[psycopg.Connection[Any]]:
    """An enqueuer and worker with a schema of his own in front of everything, full of traps."""
    theirs = login("pgworker_enqueuer", "pgworker_worker")
    with psycopg.connect(roles_dsn, autocommit=True) as connection:
        connection.execute(f"create schema evil authorization {conninfo_to_dict(theirs)['user']}".encode())
    with psycopg.connect(theirs, autocommit=True) as connection:
        for trap in TRAPS:
            connection.execute(trap.encode())
        connection.execute("set search_path = pg_temp, evil, pg_catalog")
        yield connection


@pytest.mark.parametrize("call", DEFINERS_CALLED)
def test_nothing_that_a_caller_has_planted_runs_with_the_owners_rights(
    trapper: psycopg.Connection[Any], call: str
) -> None:
    trapper.execute(call.encode(), {"id": own_id()})


@pytest.mark.parametrize(
    ("path", "caught"),
    [("evil, pg_catalog, pg_temp", "trapped as pgworker_owner"), ("pg_catalog", "timestamptz_check")],
    ids=["functions", "types, for which pg_temp comes first unless it is named"],
)
def test_the_traps_do_catch_a_function_without_a_search_path(
    roles_dsn: str, trapper: psycopg.Connection[Any], path: str, caught: str
) -> None:
    with psycopg.connect(roles_dsn, autocommit=True) as connection:
        for name in ask(connection, f"select oid::regprocedure::text {DEFINERS}"):
            connection.execute(f"alter function {name} reset all".encode())
    trapper.execute(f"set search_path = {path}".encode())
    with pytest.raises(psycopg.Error, match=caught):
        trapper.execute(DEFINERS_CALLED[0].encode())


def own_id() -> str:
    """A UUID of version 7, of now."""
    at, noise = f"{int(time.time() * 1000):012x}", uuid4().hex
    return f"{at[:8]}-{at[8:]}-7{noise[:3]}-8{noise[3:6]}-{noise[6:18]}"


# -- how the roles come about


@pytest.fixture
def own_server(directory: Path, binaries: Path | None) -> Iterator[embedded.Server]:
    """A server on which nobody has made the roles yet, as they are the server's, not the database's."""
    with embedded.start(directory, options={"fsync": "off"}, binaries=binaries) as started:
        yield started


def test_without_a_superuser_it_takes_createrole_and_later_migrations_keep_the_rights(
    own_server: embedded.Server,
) -> None:
    dsn = own_server.dsn
    theirs = make_conninfo(dsn, user="deploy")
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("create role deploy login")
        connection.execute("grant create on database pgworker to deploy")
        migrate(theirs)
        with pytest.raises(ConfigurationError, match=r"permission denied to create role.*deploy must be .*--print"):
            make_roles(theirs)
        assert owners(connection) == {"deploy"}
        connection.execute("alter role deploy createrole")
        make_roles(theirs)
        connection.execute("alter role deploy nocreaterole")
        make_roles(theirs)
        assert owners(connection) == {"pgworker_owner"}
        connection.execute("create role pool login in role pgworker_worker")
        assert migrate(theirs, migrations=[*load.migrations(), LATER], grants=LATER_GRANTS) == [LATER.name]
        assert owners(connection) == {"pgworker_owner"}
    with psycopg.connect(make_conninfo(dsn, user="pool"), autocommit=True) as connection:
        assert state_of(connection, "select from pgworker.things") == ""
        assert state_of(connection, "insert into pgworker.things values (1)") == "42501"
        assert state_of(connection, "select pgworker.things_of(1)") == "42501"


LATER_NUMBER = load.migrations()[-1].number + 1
LATER = Migration(
    LATER_NUMBER,
    f"{LATER_NUMBER:04}_things",
    "create table pgworker.things (n integer); create function pgworker.things_of(integer) returns int return 1;",
    "f" * 64,
)
LATER_GRANTS = load.script("grants") + "grant select on pgworker.things to pgworker_worker;"


def test_a_stranger_can_not_migrate_what_the_owner_owns(roles_dsn: str, login: Login) -> None:
    with pytest.raises(ConfigurationError, match="belongs to pgworker_owner: only who may SET ROLE to it can migrate"):
        migrate(login("pgworker_admin"), migrations=[*load.migrations(), LATER], grants=LATER_GRANTS)
    assert migrate(login("pgworker_admin")) == []
    assert migrate(login("pgworker_owner"), migrations=[*load.migrations(), LATER], grants=LATER_GRANTS) == [LATER.name]
    with psycopg.connect(roles_dsn) as connection:
        assert owners(connection) == {"pgworker_owner"}


def test_a_role_with_powers_of_its_own_is_not_made_use_of(own_server: embedded.Server) -> None:
    migrate(own_server.dsn)
    with psycopg.connect(own_server.dsn, autocommit=True) as connection:
        connection.execute("create role pgworker_admin login superuser")
        with pytest.raises(ConfigurationError, match=r"must have no powers of their own.*: pgworker_admin"):
            make_roles(own_server.dsn)
        assert owners(connection) == {"postgres"}


def test_who_owned_the_schema_and_a_public_schema_that_anybody_writes_to_are_spoken_of(dsn: str, login: Login) -> None:
    former = str(conninfo_to_dict(login())["user"])
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"alter schema pgworker owner to {former}".encode())
        connection.execute("grant create on schema public to public")
    first, second = make_roles(dsn)
    assert f"`grant pgworker_worker to {former}`" in first
    assert "`revoke create on schema public from public`" in second
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("revoke create on schema public from public")
    assert make_roles(dsn) == []


def test_the_printed_script_does_with_psql_what_the_command_does(
    own_server: embedded.Server, psql: str, dsn: str, tmp_path: Path
) -> None:
    make_roles(dsn)
    file = tmp_path / "script"
    file.write_text(script(load.migrations()) + "\n" + roles_script())
    command = [psql, "-X", "-q", "-d", own_server.dsn, "-f", str(file)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, "")
    with psycopg.connect(own_server.dsn) as one, psycopg.connect(dsn) as other:
        assert owners(one) == owners(other)
        assert grants(one) == grants(other)


def test_a_deploy_that_meets_a_long_transaction_gives_way_at_once(dsn: str) -> None:
    """Waiting for a lock that nothing else goes with, it would hold up every claim behind it."""
    with psycopg.connect(dsn) as busy:
        enqueue(busy)
        with pytest.raises(DatabaseUnavailable, match=r"in the way\. Try again"):
            make_roles(dsn)
    with psycopg.connect(dsn) as connection:
        assert owners(connection) == {"postgres"}


def test_the_roles_of_a_server_do_not_change_a_database_that_has_none(roles_dsn: str, blank_dsn: str) -> None:
    migrate(blank_dsn)
    with psycopg.connect(blank_dsn) as connection:
        assert owners(connection) == {"postgres"}
        assert not [line for line in grants(connection) if "pgworker_" in line.split()[-2]]
