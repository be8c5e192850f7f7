"""Describe, classify and contain the exceptions of code that is not ours.

A plugin may raise anything: GreenletExit, SystemExit, KeyboardInterrupt, a BaseException of its own whose `__str__`
raises another. Its caller contains all of that except a kill: the owner of a greenlet must be able to end it.
"""

from __future__ import annotations

import traceback
from typing import Any

from gevent import GreenletExit, threadpool

from l2tpns.runtime.log import Logger

_SWITCH = "_greenlet_primitives"  # gevent's file in which greenlets are switched out
_POOL_WORKER = getattr(threadpool, "_WorkerGreenlet", ())
_MAX_CAUSES = 20  # exceptions of a chain that are examined, for it may be a circle


def describe(error: BaseException) -> str:
    """Return the exception as one line, even if its own `__str__` raises."""
    try:
        return f"{type(error).__name__}: {error}".rstrip(": ")
    except BaseException as another:
        return f"{type(error).__name__}, whose words raise {type(another).__name__}"


def format_traceback(error: BaseException) -> str:
    """Return the exception with its traceback."""
    return "".join(traceback.format_exception(error))


def is_kill(error: BaseException) -> bool:
    """Return True if another greenlet has killed this one, by gevent's kill, while the function waited.

    A GreenletExit that the function raises itself looks the same except for its origin. A kill that a `finally` or an
    `except` turned into another exception is still a kill.
    """
    cause: BaseException | None = error
    for _ in range(_MAX_CAUSES):
        if cause is None:
            break
        if isinstance(cause, GreenletExit) and was_thrown(cause):
            return True
        cause = cause.__context__
    return False


def was_thrown(error: BaseException) -> bool:
    """Return True if another greenlet threw the exception, so that it arrived where this one was switched out."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and _SWITCH in trace.tb_frame.f_code.co_filename


def shown(result: Any) -> str:
    """Return the repr of an object for the log, even if its own `__repr__` raises."""
    try:
        return f"{result!r:.60}"
    except BaseException:
        return f"an object of {type(result).__name__}"


def contain_strays(hub: Any, log: Logger) -> None:
    """Log the exceptions of greenlets that have no owner, and end nothing else because of them.

    gevent would print them, and raise SystemExit and KeyboardInterrupt again in the main greenlet: a plugin that calls
    sys.exit in a greenlet of its own would end the server.
    """

    def handle_error(context: object, kind: Any, error: Any, trace: Any) -> None:
        if not isinstance(error, BaseException):
            error = kind()
        error.__traceback__ = error.__traceback__ or trace
        if isinstance(context, tuple) and context and isinstance(context[0], _POOL_WORKER):
            return  # of a thread of gevent's pool: raised again where its result is awaited
        log.error("greenlet_failed", greenlet=shown(context), why=describe(error), traceback=format_traceback(error))

    hub.handle_error = handle_error
