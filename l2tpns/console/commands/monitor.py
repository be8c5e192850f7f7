"""`monitor session`: a subscriber's packets live, one line each. `monitor tunnel`: the log lines of one tunnel, live.

The data path only copies the beginning of each packet to a short queue. The console renders the line in its own turn.
If the console is too slow, lines are dropped and counted. The audit log records the operator and the subscriber.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from datetime import datetime
from time import time
from typing import TYPE_CHECKING

import orjson

from l2tpns.console.commands.arguments import find_session, find_tunnel, sessions, tunnels
from l2tpns.console.grammar import Argument, Command, Privilege
from l2tpns.console.log_line import log_line
from l2tpns.console.packet_line import SNAP_LENGTH, packet_line
from l2tpns.dataplane.session_path import UP
from l2tpns.l2tp.tunnel import TunnelState
from l2tpns.runtime.log import CALL

if TYPE_CHECKING:
    from l2tpns.console.shell import Shell

MAX_QUEUED = 500  # packets or log lines waiting to be shown


class LineQueue:
    """Lines to be shown, up to a limit. `put` is called by the reader and the logger; it must not block or raise."""

    def __init__(self, wake: Callable[[], None], line: Callable[..., str]) -> None:
        self._wake = wake
        self._line = line
        self._queue: deque[tuple[object, ...]] = deque()
        self._missed = 0
        self.shown = self.missed = 0

    def put(self, *facts: object) -> None:
        if len(self._queue) >= MAX_QUEUED:
            self._missed += 1
            return
        self._queue.append(facts)
        if len(self._queue) == 1:
            self._wake()

    def lines(self) -> Iterator[str]:
        """Yield the lines queued now, then a line with the number of dropped ones."""
        for _ in range(len(self._queue)):
            self.shown += 1
            yield self._line(*self._queue.popleft())
        missed, self._missed = self._missed, 0
        if missed:
            self.missed += missed
            yield f"({missed} came too fast to be shown)"


def monitor_session(shell: Shell, word: str) -> str:
    session = find_session(shell.context, word)
    lns, log = shell.context.lns, session.log
    queue = LineQueue(shell.terminal.wake, _packet_line)

    def keep(direction: int, packet: bytes) -> None:
        queue.put(time(), direction, packet[:SNAP_LENGTH], len(packet))

    def ended(_: object) -> None:
        shell.terminal.wake()

    shell.terminal.print(f"Packets of session {session.id} ({session.user or '*'}); Enter ends it")
    log.secret_audit("monitor_on", by=shell.actor, user=session.user)
    session.greenlet.rawlink(ended)
    lns.services.taps.watch(session, keep)
    try:
        shell.terminal.show_live(queue.lines, lambda: lns.sessions.get(session.id) is not session)
    finally:
        lns.services.taps.unwatch(session, keep)
        session.greenlet.unlink(ended)
        log.secret_audit("monitor_off", by=shell.actor, user=session.user, shown=queue.shown, missed=queue.missed)
    gone = f"Session {session.id} has ended\n" if lns.sessions.get(session.id) is not session else ""
    return f"{gone}{queue.shown} packets shown, {queue.missed} missed"


def _packet_line(when: float, direction: int, packet: bytes, octets: int) -> str:
    stamp = datetime.fromtimestamp(when).strftime("%H:%M:%S.%f")
    return f"{stamp} {'up  ' if direction == UP else 'down'} {packet_line(packet, octets)}"


def monitor_tunnel(shell: Shell, word: str) -> str:
    """Show what `debug call` shows, restricted to one tunnel and its sessions."""
    tunnel = find_tunnel(shell.context, word)
    queue = LineQueue(shell.terminal.wake, log_line)
    mark = b'"tunnel":%d' % tunnel.id  # cheap test, as most lines belong to other tunnels

    def keep(line: bytes, level: int) -> None:
        if mark in line and (entry := orjson.loads(line)).get("tunnel") == tunnel.id:
            queue.put(entry)

    def over() -> bool:
        return tunnel.state is TunnelState.CLOSING and shell.context.lns.tunnels.get(tunnel.id) is not tunnel

    shell.terminal.print(f"Control messages of tunnel {tunnel.id} ({tunnel.host}); Enter ends it")
    listener = shell.context.log.listen(range(CALL + 1), keep)
    try:
        shell.terminal.show_live(queue.lines, over)
    finally:
        shell.context.log.unlisten(listener)
    return f"{queue.shown} lines shown, {queue.missed} missed"


ONE_SESSION = Argument("SID", "id of a session", sessions)
ONE_TUNNEL = Argument("TID", "id of a tunnel", tunnels)

COMMANDS = (
    Command(
        "monitor session",
        "display a subscriber's packets live, one line each; Enter ends it",
        monitor_session,
        (ONE_SESSION,),
        privilege=Privilege.ENABLED,
    ),
    Command(
        "monitor tunnel",
        "display the control messages of a tunnel and its sessions live; Enter ends it",
        monitor_tunnel,
        (ONE_TUNNEL,),
        privilege=Privilege.ENABLED,
    ),
)
