"""Import what is otherwise imported when it is first used, while the server is still root (`setuid`).

Python, or the directory that the server is installed in, may be readable for root alone. And an installation that is
replaced under a running server must not give it half of its modules from the next release.
"""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module

from l2tpns.system import iptables
from l2tpns.system.iptables import FirewallError

LATE = (
    "gevent.fileobject",  # the pipes of a program that a plugin starts
    "gevent.resolver.thread",  # names of hosts
)


def import_late_modules() -> None:
    """Import them. Does not yield, and takes about 0.2 seconds; called at the start only."""
    for name in LATE:
        import_module(name)
    with suppress(FirewallError):  # reported when rules are needed
        iptables.load()
