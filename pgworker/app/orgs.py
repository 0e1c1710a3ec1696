"""Orgs, the tenants of an app: who a job is for, what is configured for it, and whether every job must have one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from pgworker.app.callables import is_async
from pgworker.errors import ConfigurationError, Discard, InvalidJob
from pgworker.model.job import Job

OrgConfig = Callable[[str], Any]

_UNREAD: Final = object()


class Org:
    """An org by its id. `config` is what `App(org_config=...)` returns for it, asked once, at first use."""

    __slots__ = ("_config", "_make_config", "id")

    def __init__(self, org_id: str, make_config: OrgConfig | None = None) -> None:
        self.id = org_id
        self._make_config = make_config
        self._config: Any = _UNREAD

    @property
    def config(self) -> Any:
        """ConfigurationError if the App was made without `org_config`; whatever that raises comes through."""
        if self._config is _UNREAD:
            if self._make_config is None:
                raise ConfigurationError(
                    "nothing says what an org's config is: pass a function of the org's id, App(org_config=...)"
                )
            self._config = self._make_config(self.id)
        return self._config

    def __repr__(self) -> str:
        return f"<Org {self.id}>"


@dataclass(frozen=True, slots=True)
class OrgRules:
    """What an App says of orgs."""

    is_required: bool
    config: OrgConfig | None


def org_rules(require_org: object, org_config: Any) -> OrgRules:
    """The rules, checked. ConfigurationError for what can't be one."""
    if not isinstance(require_org, bool):
        raise ConfigurationError(f"require_org must be True or False, not {require_org!r:.60}")
    if org_config is not None and (not callable(org_config) or is_async(org_config)):
        raise ConfigurationError(f"org_config must be a plain function of an org's id, not {org_config!r:.60}")
    return OrgRules(require_org, org_config)


def refuse_request_without_org(task: str, org_id: str | None) -> None:
    """InvalidJob, before anything is sent."""
    if org_id is None:
        raise InvalidJob(
            f"a job of {task} needs an org, as the app requires one: enqueue it inside `with app.org(...)`, "
            "or with .options(org_id=...)"
        )


def refuse_job_without_org(job: Job) -> None:
    """Discard: SQL or another app has enqueued it, and no later attempt would find an org on it."""
    if job.org_id is None:
        raise Discard("the app requires an org and this job has none: enqueue it anew with an org_id")
