"""What greenlets raise: in words, whatever it is, and whose it is.

Code that is not ours, a plugin's above all, may raise anything: GreenletExit, SystemExit, KeyboardInterrupt, a
BaseException of its own whose `__str__` raises another. Whoever calls it contains all of that, but for one thing: to
end a greenlet while it waits is its owner's right, and goes on.
"""

from __future__ import annotations

import traceback
from typing import Any

from gevent import GreenletExit, threadpool

from l2tpns.runtime.log import Logger

_SWITCH = "_greenlet_primitives"  # gevent's file where a greenlet waits for its next turn
_POOL_WORKER = getattr(threadpool, "_WorkerGreenlet", ())
_MOST_CAUSES = 20  # of an exception that is looked through: they may go round in a circle


def describe(error: BaseException) -> str:
    """The exception in a line, whatever its own words do."""
    try:
        return f"{type(error).__name__}: {error}".rstrip(": ")
    except BaseException as another:
        return f"{type(error).__name__}, whose words raise {type(another).__name__}"


def words(error: BaseException) -> str:
    """The exception with its traceback."""
    return "".join(traceback.format_exception(error))


def is_kill(error: BaseException) -> bool:
    """Whether others have ended this greenlet while the function waited, by gevent's kill: that is theirs to do.

    A GreenletExit that the function raises itself looks the same, but for where it comes from. One that it turned into
    another exception, in a `finally` or an `except`, is still theirs.
    """
    cause: BaseException | None = error
    for _ in range(_MOST_CAUSES):
        if cause is None:
            break
        if isinstance(cause, GreenletExit) and was_thrown(cause):
            return True
        cause = cause.__context__
    return False


def was_thrown(error: BaseException) -> bool:
    """Whether it came from another greenlet, and so to the place where this one waited for its next turn."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and _SWITCH in trace.tb_frame.f_code.co_filename


def shown(result: Any) -> str:
    """It as Python writes it, for the log: its own words may fail, too."""
    try:
        return f"{result!r:.60}"
    except BaseException:
        return f"an object of {type(result).__name__}"


def contain_strays(hub: Any, log: Logger) -> None:
    """Have what greenlets of nobody's raise told by the log, and end nothing else.

    gevent would print it, and raise SystemExit and KeyboardInterrupt again in the main greenlet: a plugin that calls
    sys.exit in a greenlet of its own would end the server.
    """

    def handle_error(context: object, kind: Any, error: Any, trace: Any) -> None:
        if not isinstance(error, BaseException):
            error = kind()
        error.__traceback__ = error.__traceback__ or trace
        if isinstance(context, tuple) and context and isinstance(context[0], _POOL_WORKER):
            return  # of a thread of gevent's pool: it is raised where its result is waited for
        log.error("greenlet_failed", greenlet=shown(context), why=describe(error), traceback=words(error))

    hub.handle_error = handle_error
