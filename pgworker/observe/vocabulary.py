"""Every name that stands in a log line: of what happened, in the field `event`, and of the fields beside it.

A name that is not here is not logged: a test reads each call. To rename one breaks somebody's alarm.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pgworker.model.state import Outcome

JOB_EVENTS: Final[Mapping[str, str]] = {
    "job_enqueued": "stored; its transaction may still be rolled back (debug, where it was enqueued; no execution yet)",
    "job_claimed": "a worker holds it, under a lease (debug)",
    "job_started": "its handler is called (debug)",
    "job_succeeded": "its handler has returned (debug)",
    "job_failed": "its handler has failed; it runs again in retry_in seconds",
    "job_timed_out": "it stopped when its time was up; it runs again in retry_in seconds",
    "job_dead_lettered": "given up: it failed for good, or its attempts are used up; outcome says how it ended",
    "job_cancelled": "it was cancelled and stopped",
    "job_lost": "it stopped because its lease could not be renewed; it runs again, uncharged",
    "job_released": "stopped by the end of the pool, or not started (debug): back in the queue, uncharged",
    "job_snoozed": "it asked to run later: in retry_in seconds",
    "execution_reclaimed": "its worker has died or fallen silent; the monitor of this line has taken it back",
    "result_lost": "it ended after its lease did: its end is not recorded, another worker has it",
    "result_forgotten": "the server has lost how it ended: a standby was promoted that lagged; it runs again",
    "result_not_stored": "what it returned or raised can't be stored; it is recorded without",
    "progress_not_stored": "what it said of its progress can't be stored",
    "commit_found": "the reply to its commit was lost, and the commit was found",
    "failed_after_commit": "its handler failed after its transaction had committed: it has succeeded",
    "verdict_failed": "should_retry or a delay of its task raised: an ordinary failure",
    "cancel_heard": "somebody has cancelled it while it runs by `pgworker jobs run`",
    "handler_raised": "its handler raised in a test's drain(), which returns the error too",
}
"""Lines about one job: each has job, execution and task, and queue and org where there are."""

POOL_EVENTS: Final[Mapping[str, str]] = {
    "pool_starting": "the first line: version, workers, slots, queues, database, pid",
    "pool_ready": "the first worker can work",
    "pool_failed": "no worker could start; the pool ends",
    "draining": "the pool was asked to end",
    "drain_hurried": "it was asked again: what runs is stopped",
    "drained": "the last line: the pool has ended in order; jobs, succeeded, failed, duration",
    "drain_timed_out": "the last line: it has ended, and what still ran was stopped",
    "worker_started": "a worker is about to claim",
    "worker_refused": "a worker can't work: its app, its schema",
    "worker_ended": "a worker process is gone, and why",
    "worker_gone": "a worker of another pool on this host was killed with its whole pool; its jobs are taken back",
    "worker_limit_reached": "a worker has reached --max-jobs, --max-memory or --max-age and is to be replaced",
    "worker_crashed": "a bug in pgworker or no memory left: the worker ends itself",
    "cpus_refused": "a worker can't stay on its CPUs",
    "hook_failed": "a stop hook has raised",
    "monitor_ended": "the monitor is gone; a new one starts",
    "monitor_stuck": "the monitor has not moved; it is replaced",
    "master_gone": "the master is dead; the monitor sees the workers end and takes back their jobs",
    "master_crashed": "a bug in pgworker: the pool ends",
    "deaths_unrecorded": "ends of workers could not be written to the database",
    "fork_failed": "no process to be had; tried again",
    "memory_overcommitted": "the workers' memory limits are more than the cgroup has",
    "signal_ignored": "a signal was refused, or has no meaning now",
    "pool_resized": "one worker more or fewer",
    "claiming_paused": "USR2: nothing new is started",
    "claiming_resumed": "USR2 again",
    "restart_begun": "HUP: the app is tried, or workers begin to be replaced",
    "restart_done": "HUP: every worker runs the app as it is now",
    "restart_hurried": "--reload: a job of an old worker has had its time, and goes back to the queue",
    "restart_failed": "HUP: the old workers go on, and why",
    "stack": "USR1: one line of the stacks of one process",
    "stack_missing": "USR1: a process is in C and has not answered",
    "postgres_started": "the private PostgreSQL of --embedded runs",
    "service_ended": "the private PostgreSQL, or the watcher of --reload, has ended; it is started again",
    "service_failed": "one of these does not start",
    "files_watched": "--reload: edits of Python files in these directories are seen from now on",
    "files_changed": "--reload: these files have changed, so the workers are replaced",
    "watch_failed": "--reload: the directories can't be watched, and why",
    "database_away": "PostgreSQL can't be used; at most once a second for a pool",
    "database_back": "PostgreSQL can be used again",
    "clock_set": "the database's clock was set forward or back: expired leases of others are left alone for a while",
    "line_slow": "round trips to the database take so long that leases can't be kept",
    "listening_lost": "new jobs are not heard of; workers poll",
    "lease_lost": "a lease could not be renewed: others have its jobs",
    "reclaim_failed": "a lease could not be taken back; the others are",
    "queue_not_returned": "what app.queue() held could not be given back",
    "jobs_unserved": "jobs wait, and no worker serves their task",
    "counts_missing": "what the database holds can't be counted, so /metrics does not show it",
    "labels_folded": "more pairs of queue and task than /metrics shows: new ones are other, other there",
    "pages_exhausted": "clients of /metrics wait: no descriptors or memory are left for their connections",
    "token_readable": "every user of this host can read the file with the token of /metrics",
    "token_unreadable": "the file with the token of /metrics can't be read any more: nobody sees the page until it can",
    "page_failed": "a bug in pgworker: a page such as /metrics can't be made",
    "partitions_made": "the days ahead have partitions",
    "partition_dropped": "an expired day is gone",
    "partition_delayed": "a partition can't be made or dropped yet, somebody is in the way",
    "partition_failed": "a partition can't be made or dropped, and why",
    "default_partition_used": "jobs are in the default partition",
    "log_lines_lost": "so many lines of this process could not be written: nobody read them, or no space was left",
}
"""Lines about anything else."""

EVENTS: Final[Mapping[str, str]] = {**JOB_EVENTS, **POOL_EVENTS}

ENDED: Final[Mapping[Outcome, str]] = {
    Outcome.SUCCEEDED: "job_succeeded",
    Outcome.FAILED: "job_failed",
    Outcome.TIMED_OUT: "job_timed_out",
    Outcome.CANCELLED: "job_cancelled",
    Outcome.CRASHED: "execution_reclaimed",
    Outcome.LOST: "job_lost",
    Outcome.RELEASED: "job_released",
    Outcome.SNOOZED: "job_snoozed",
}
"""The event of an execution's end."""

ALWAYS: Final[Mapping[str, str]] = {
    "time": "UTC, to the microsecond; the journal has its own",
    "level": "DEBUG, INFO, WARNING, ERROR, CRITICAL",
    "message": "the sentence; in text without its name",
    "event": "what happened, a name of the tables below; lines of the app have none",
    "process": "master, monitor, worker 3; in text without its name",
    "host": "the host's name",
    "pool": "the pool's id, that of worker_heartbeats (JSON, and the first line)",
    "pid": "the process that wrote the line (JSON)",
    "logger": "in JSON always, in text for lines of the app",
}

FIELDS: Final[Mapping[str, str]] = {
    "job": "the job's id",
    "execution": "which start of the job it was, from 1",
    "task": "its name",
    "queue": "its name",
    "org": "the job's org, if it has one",
    "lease": "the lease that the job was claimed under, or that the line is about",
    "outcome": "as in job_executions: succeeded, failed, timed_out, cancelled, crashed, lost, released, snoozed",
    "duration": "seconds: of an execution, or of a pool's life",
    "retry_in": "seconds until the job is due again",
    "cause": "why an execution ended that did not end by itself",
    "error": "an error: its type, or its type and message",
    "error_message": "the message of that error",
    "exception": "the stack of an error that was logged with one, in one string",
    "stack": "the stack of a call that was logged with stack_info, in one string",
    "worker": "a place in the pool: 0, 1, …",
    "worker_id": "an incarnation of a worker, as in worker_heartbeats",
    "worker_pid": "the process that a line of somebody else is about",
    "task_count": "tasks that a worker serves",
    "waiting": "results that wait to be recorded",
    "jobs": "how many",
    "succeeded": "how many executions",
    "failed": "how many executions ended otherwise",
    "workers": "how many",
    "slots": "jobs that each worker runs at a time",
    "queues": "names, in their order",
    "database": "user, host and name of the database, no secret",
    "version": "of pgworker",
    "exit_code": "of the pool",
    "hook": "the function's name",
    "lines": "how many",
    "problem": "why a record could not be written as it was",
}
