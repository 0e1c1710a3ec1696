"""The one connection of a pool that waits to be told of new jobs, for a caller that has its own selector."""

from __future__ import annotations

import psycopg

from pgworker.db.connect import connect, explain

# "pgwq" in ASCII: the first key of the advisory locks that say "somebody sleeps on this queue"; the second is the
# hash of the queue's name. Enqueuers notify only while such a lock is held.
SLEEP_LOCK_CLASS = 0x70677771

_SLEEP = "select pg_catalog.pg_try_advisory_lock_shared(%s::integer, pg_catalog.hashtext(%s::text))"
_WAKE = "select pg_catalog.pg_advisory_unlock_shared(%s::integer, pg_catalog.hashtext(%s::text))"


class Listener:
    """LISTENs on the channel `pgworker`. Needs a session of its own: a pooler in transaction mode can't give it.

    Once connected every method may raise psycopg.OperationalError: the connection is lost. Close it, open another,
    and look for jobs at once, since notifications were missed meanwhile.
    """

    def __init__(self, dsn: str, *, application_name: str = "pgworker listener", patience: float | None = None) -> None:
        """Connect and listen. Raises what `connect` raises; DatabaseUnavailable on a standby, which can't LISTEN.

        `patience`: seconds that each method waits for an answer, None: for ever.
        """
        self._connection = connect(dsn, application_name=application_name, prepare_threshold=None, patience=patience)
        self._payloads: list[str] = []
        self._asleep: set[str] = set()
        self._connection.add_notify_handler(self._keep)
        try:
            self._connection.execute("listen pgworker")
        except psycopg.Error as error:
            self._connection.close()
            raise explain(error, dsn) from error

    def fileno(self) -> int:
        """The socket, to select for reading; when it is readable, `read`."""
        return self._connection.fileno()

    def read(self) -> list[str]:
        """The payloads that have come since the last call, without waiting for any."""
        pgconn = self._connection.pgconn
        pgconn.consume_input()
        while note := pgconn.notifies():
            self._payloads.append(note.extra.decode(errors="replace"))
        payloads, self._payloads = self._payloads, []
        return payloads

    def sleep_lock(self, queue: str) -> bool:
        """Have enqueuers notify for `queue`; False when one of them is just asking for this lock: try again.

        A job committed before the lock was held is not told of: look for jobs once more between this and the sleep,
        and `read`, since the reply may have brought notifications that no longer make the socket readable.
        """
        if queue not in self._asleep and self._ask(_SLEEP, queue):
            self._asleep.add(queue)
        return queue in self._asleep

    def sleep_unlock(self, queue: str) -> bool:
        """Spare enqueuers the notification again; False when `queue` was not locked."""
        if queue not in self._asleep:
            return False
        self._asleep.remove(queue)
        return self._ask(_WAKE, queue)

    def ask_whether_it_lives(self) -> None:
        """Nothing but an answer: who only waits to be told never hears that its server is gone."""
        self._connection.execute("")

    def close(self) -> None:
        """Close the connection, which ends every sleep lock."""
        self._connection.close()

    def _keep(self, note: psycopg.Notify) -> None:
        self._payloads.append(note.payload)

    def _ask(self, statement: str, queue: str) -> bool:
        row = self._connection.execute(statement, (SLEEP_LOCK_CLASS, queue)).fetchone()
        return bool(row and row[0])
