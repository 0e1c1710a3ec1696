"""Customers: some orders a second, until TERM. A signal that is blocked waits, for PID 1 of a container too."""

from __future__ import annotations

import signal
from itertools import count, islice

from shop import app, mail, pack

ENDS = (signal.SIGTERM, signal.SIGINT)
A_SECOND = 4
"""Orders."""


def main() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)
    orders = count(1)
    while signal.sigtimedwait(ENDS, 1.0) is None:
        app.enqueue_many([task.job(order) for order in islice(orders, A_SECOND) for task in (pack, mail)])
    app.close()


if __name__ == "__main__":
    main()
