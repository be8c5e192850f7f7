"""`show fastpath`: whether programs in the kernel carry the sessions, and what they leave to user space.

Only with enable privilege: a subscriber that could see these figures would recognise in them that its packets are
copied, since an intercepted session is carried in user space.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from l2tpns.console.grammar import Command, Privilege
from l2tpns.console.output import Output
from l2tpns.dataplane.fastpath.layout import HELP

if TYPE_CHECKING:
    from l2tpns.console.shell import Shell


def show_fast_path(shell: Shell) -> Output:
    lns = shell.context.lns
    status = lns.services.plane.fast_path()
    online = sum(1 for session in lns.sessions.values() if session.path.online)

    def lines() -> Iterator[str]:
        setting = f"set fast_path {lns.config.fast_path}"
        if not status.running:
            yield f"Fast path:   not in use ({setting}): {status.why_not}"
            return
        yield f"Fast path:   in use ({setting})"
        yield f"Interfaces:  {', '.join(status.interfaces) or 'none'}"
        for name, why in status.passed_over.items():
            yield f"  not {name}: {why}"
        yield f"Sessions:    {status.sessions} of {online} online"
        yield ""
        for name, value in status.totals.items():
            yield f"{name:<26}{value:>14}  {HELP[name]}"

    def row() -> dict[str, object]:
        return {
            "setting": lns.config.fast_path,
            "running": status.running,
            "why_not": status.why_not,
            "interfaces": list(status.interfaces),
            "passed_over": dict(status.passed_over),
            "sessions": status.sessions,
            "online": online,
            "totals": dict(status.totals),
        }

    return Output(lines, row)


COMMANDS = (
    Command(
        "show fastpath",
        "sessions carried in the kernel, and packets left to user space",
        show_fast_path,
        privilege=Privilege.ENABLED,
    ),
)
