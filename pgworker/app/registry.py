"""Find the App that a command names: `module:app`."""

from __future__ import annotations

import importlib
import os
import re
import sys
from difflib import get_close_matches
from types import ModuleType

from pgworker.app.app import App
from pgworker.app.origin import told
from pgworker.errors import ConfigurationError
from pgworker.observe import logs

_TARGET = re.compile(r"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<name>[^\W\d]\w*)")


def load_app(target: str) -> App:
    """The App at `module:app`, imported with the current directory on sys.path.

    ConfigurationError, a sentence each: not of this form, no such module, an error while it is imported, no such name
    in it, not an App.
    """
    parts = _TARGET.fullmatch(target)
    if parts is None:
        raise ConfigurationError(f"{target!r} names no app: write module:app, such as shop.tasks:app")
    if os.getcwd() not in sys.path:  # noqa: PTH109  sys.path holds strings
        sys.path.insert(0, os.getcwd())  # noqa: PTH109
    module = _import(parts["module"])
    logs.enable_own()
    return _app_in(module, parts["name"])


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}."):
            raise ConfigurationError(
                f"there is no module {error.name} here (in {os.getcwd()}) or among the installed packages"  # noqa: PTH109
            ) from error
        raise ConfigurationError(f"can't import {name}: {told(error)}. Is it installed in this environment?") from error
    except (Exception, SystemExit) as error:
        raise ConfigurationError(f"can't import {name}: {told(error)}") from error


def _app_in(module: ModuleType, name: str) -> App:
    apps = [found for found, value in vars(module).items() if isinstance(value, App)]
    advice = f"; did you mean {module.__name__}:{apps[0]}?" if apps else ""
    try:
        value = getattr(module, name)
    except AttributeError:
        close = get_close_matches(name, vars(module), n=1)
        advice = advice or (f"; did you mean {close[0]}?" if close else "")
        raise ConfigurationError(f"module {module.__name__} has no {name}{advice}") from None
    if not isinstance(value, App):
        raise ConfigurationError(f"{module.__name__}:{name} is {_kind(value)}, not an App{advice}")
    return value


def _kind(value: object) -> str:
    if isinstance(value, type):
        return f"the class {value.__qualname__}"
    kind = type(value).__qualname__
    return f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"
