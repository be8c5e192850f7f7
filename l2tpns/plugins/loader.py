"""Loads the module of a plugin: finds the file, checks its owner, compiles and runs it, checks its hooks (HOOKS).

The loader changes nothing in the server. Errors are PluginErrors that name file and line. A plugin is one file. It has
all rights of the server, so the loader refuses files that other users may write.
"""

from __future__ import annotations

import difflib
import inspect
import os
import re
import stat
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from l2tpns.errors import PluginError
from l2tpns.hooks import HOOKS, NAMES, PLUGIN_API_VERSION, Hook
from l2tpns.runtime.exceptions import describe, is_kill
from l2tpns.runtime.text import printable
from l2tpns.runtime.text_file import is_wide

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}", re.ASCII)
INSTALLED = Path("/usr/lib/l2tpns")
CHECKOUT = Path(__file__).resolve().parents[2] / "modules"


@dataclass(frozen=True, slots=True)
class Code:
    """The checked module of a plugin. No hook has been called yet."""

    name: str
    path: Path
    module: ModuleType
    functions: dict[str, Callable[..., Any]]  # by the hook's name
    version: str
    help: tuple[str, ...]
    avpairs: tuple[str, ...] | None  # the keys that it handles, None: unknown


def directory(chosen: str) -> Path:
    """Return the directory of plugins: `plugin_dir`, else that of the installation or of a checkout."""
    if chosen:
        return Path(chosen)
    installed = os.environ.get("L2TPNS_LIB")
    if installed:
        return Path(installed)
    return CHECKOUT if CHECKOUT.is_dir() else INSTALLED


def available(folder: Path) -> list[str]:
    """Return the names of plugins in a directory."""
    return sorted(path.stem for path in folder.glob("*.py") if NAME.fullmatch(path.stem))


def read(name: str, folder: Path) -> Code:
    """Load the module of a plugin. May yield. Raises PluginError, and leaves nothing behind."""
    if not NAME.fullmatch(name):
        raise PluginError(f'"{printable(name)}" is not a valid plugin name: enter it without path and suffix')
    path = folder / f"{name}.py"
    source = _source(path, name)
    module = ModuleType(f"l2tpns_plugin_{name}")
    module.__file__ = str(path)
    before = sys.modules.get(module.__name__)
    sys.modules[module.__name__] = module  # dataclasses and pickle look there
    try:
        exec(_compiled(source, path), module.__dict__)
        functions = _functions(module, path)
        return Code(name, path, module, functions, _version(module), _help(module, path), _avpairs(module, path))
    except PluginError:
        raise
    except BaseException as error:
        if is_kill(error):
            raise
        raise PluginError(f"{where(error, path)}: {describe(error)}") from error
    finally:
        forget(module)
        if before is not None:
            sys.modules[module.__name__] = before


def forget(module: ModuleType) -> None:
    """Remove a plugin from sys.modules, unless another one replaced it."""
    if sys.modules.get(module.__name__) is module:
        del sys.modules[module.__name__]


def _source(path: Path, name: str) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        known = difflib.get_close_matches(name, available(path.parent), n=1)
        raise PluginError(f"no such file: {path}" + (f": did you mean {known[0]}?" if known else "")) from None
    except OSError as error:
        raise PluginError(f"{path}: {error.strerror}") from None
    with os.fdopen(descriptor, "rb") as file:
        _check_owner(os.fstat(file.fileno()), path)
        _check_owner(os.stat(path.resolve().parent), path.parent)
        return file.read()


def _check_owner(found: os.stat_result, path: Path) -> None:
    own = os.geteuid()
    if found.st_uid not in (0, own):
        runner = "code run by root must belong to root" if own == 0 else f"it must belong to root or to user {own}"
        raise PluginError(f"{path} belongs to user {found.st_uid}: {runner}")
    sticky = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
    if found.st_mode & stat.S_IWOTH and not sticky:
        raise PluginError(f"{path} is writable by all users: chmod o-w")
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        raise PluginError(f"{path} is not a file")


def _compiled(source: bytes, path: Path) -> Any:
    if is_wide(source):
        raise PluginError(f"{path}: is UTF-16 or UTF-32: save it as UTF-8")
    try:
        return compile(source, str(path), "exec", dont_inherit=True)
    except SyntaxError as error:
        raise PluginError(f"{path}:{error.lineno or 1}: {error.msg}") from None
    except ValueError as error:  # a NUL
        raise PluginError(f"{path}: {error}") from None


def _functions(module: ModuleType, path: Path) -> dict[str, Callable[..., Any]]:
    """Return the hooks of a module. Raises PluginError for an unknown name with the prefix plugin_."""
    found: dict[str, Callable[..., Any]] = {}
    known = {hook.function: hook for hook in HOOKS.values()}
    for name, thing in vars(module).items():
        if not name.startswith("plugin_") or name in NAMES:
            continue
        hook = known.get(name)
        if hook is None:
            close = difflib.get_close_matches(name, [*known, *NAMES], n=1, cutoff=0)
            raise PluginError(f"{_at(path, thing)}: {name} is not a hook: did you mean {close[0]}?")
        _check_function(hook, thing, path)
        found[hook.name] = thing
    if not found:
        raise PluginError(f"{path}: no hook found: it has no function such as {HOOKS['pre_auth'].function}")
    return found


def _check_function(hook: Hook, thing: Any, path: Path) -> None:
    at = _at(path, thing)
    if not callable(thing):
        raise PluginError(f"{at}: {hook.function} must be a function")
    if inspect.iscoroutinefunction(thing) or inspect.isgeneratorfunction(thing) or inspect.isasyncgenfunction(thing):
        raise PluginError(f"{at}: {hook.function} must be a plain function: no async, no yield")
    try:
        inspect.signature(thing).bind(*[None] * hook.arguments)
    except TypeError:
        takes = ("no argument", "one argument")[hook.arguments]
        raise PluginError(f"{at}: {hook.function} must take {takes}") from None
    except ValueError:
        pass  # a C function without a signature


def _version(module: ModuleType) -> str:
    api = getattr(module, "plugin_api_version", PLUGIN_API_VERSION)
    wanted = api() if callable(api) else api
    if wanted != PLUGIN_API_VERSION:
        raise PluginError(f"{module.__file__}: written for plugin interface {wanted!r}, this is {PLUGIN_API_VERSION}")
    return str(getattr(module, "__version__", ""))


def _help(module: ModuleType, path: Path) -> tuple[str, ...]:
    lines = getattr(module, "plugin_control_help", ())
    lines = lines() if callable(lines) else lines
    if isinstance(lines, str):
        lines = lines.splitlines()
    if not isinstance(lines, Sequence) or not all(isinstance(line, str) for line in lines):
        raise PluginError(f"{path}: plugin_control_help must be a list of strings, or a function that returns one")
    return tuple(lines)


def _avpairs(module: ModuleType, path: Path) -> tuple[str, ...] | None:
    keys = getattr(module, "plugin_avpairs", None)
    if keys is None:
        return None
    if isinstance(keys, str) or not isinstance(keys, Sequence) or not all(isinstance(key, str) for key in keys):
        raise PluginError(f"{path}: plugin_avpairs must be a list of strings")
    return tuple(key.lower() for key in keys)


def _at(path: Path, thing: Any) -> str:
    code = getattr(thing, "__code__", None)
    return f"{path}:{code.co_firstlineno}" if code is not None and code.co_filename == str(path) else str(path)


def where(error: BaseException, path: Path) -> str:
    """Return file and line of the innermost frame of the plugin in a traceback."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == str(path)]
    return f"{path}:{lines[-1]}" if lines else str(path)


def trace(error: BaseException, path: Path) -> str:
    """Return the traceback from the first frame of the plugin on, without those of the server."""
    found = traceback.TracebackException.from_exception(error)
    first = next((at for at, frame in enumerate(found.stack) if frame.filename == str(path)), 0)
    found.stack = traceback.StackSummary.from_list(found.stack[first:])
    return "".join(found.format())
