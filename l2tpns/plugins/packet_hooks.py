"""Packet hooks: the callable in a session's path while a plugin has one (reference 7: rx is to the subscriber).

They run in the greenlets that read the packets of all subscribers, so they must not block. A call that would block
(sleep, network, a lock in use) raises PluginError instead. Wall clock time is measured, which costs a fifth of reading
the thread's CPU time. So a slow machine may cause a warning about a plugin.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import greenlet

from l2tpns.dataplane.session_path import DOWN, UP, Tap
from l2tpns.errors import PluginError
from l2tpns.hooks import PLUGIN_RET_ERROR, PLUGIN_RET_OK, PLUGIN_RET_STOP, param_packet_rx, param_packet_tx
from l2tpns.plugins.calls import SLOW_CALL, Caller, Function
from l2tpns.plugins.session_api import Session
from l2tpns.runtime.exceptions import shown
from l2tpns.subscriber.session import Session as CoreSession

Chain = tuple[tuple[Function, param_packet_rx], ...]


def make_tap(caller: Caller, session: CoreSession, up: Sequence[Function], down: Sequence[Function]) -> Tap:
    """Return the packet hook of one session."""
    chains: tuple[Chain, Chain] = (
        tuple((function, param_packet_tx(*_ids_and_view(function, session))) for function in up),
        tuple((function, param_packet_rx(*_ids_and_view(function, session))) for function in down),
    )
    assert (UP, DOWN) == (0, 1)

    def tap(direction: int, packet: bytes) -> bytes | None:
        chain = chains[direction]
        if not chain:
            return packet
        reader = greenlet.getcurrent()
        reader.switch_out = _refuse_to_block  # gevent calls it before a greenlet blocks
        try:
            for function, event in chain:
                event.buf = packet
                event.len = len(packet)
                began = perf_counter()
                try:
                    result = function.call(event)
                except BaseException as error:  # it cannot block, so no other code has thrown this
                    caller.record_time(function, perf_counter() - began)
                    caller.record_failure(function, error)
                    continue
                seconds = perf_counter() - began
                if seconds >= SLOW_CALL:
                    caller.record_time(function, seconds)
                else:  # inlined for speed
                    function.calls += 1
                    function.seconds += seconds
                    if seconds > function.slowest:
                        function.slowest = seconds
                if result is not None and result is not PLUGIN_RET_OK:
                    if type(result) is not int or result not in (PLUGIN_RET_ERROR, PLUGIN_RET_OK, PLUGIN_RET_STOP):
                        caller.record_invalid_result(function, result)
                        continue
                    if result == PLUGIN_RET_ERROR:
                        return None
                changed = event.buf
                if changed is not packet:
                    if type(changed) is not bytes or not changed:
                        caller.record_failure(function, PluginError(f"buf must be bytes, not {shown(changed)}"))
                        continue
                    packet = changed
                if result == PLUGIN_RET_STOP:
                    break
        finally:
            del reader.switch_out
        return packet

    return tap


def _ids_and_view(function: Function, session: CoreSession) -> tuple[int, int, Session]:
    return session.tunnel.id, session.id, Session(session, f"plugin {function.plugin}")


def _refuse_to_block() -> None:
    raise PluginError("a packet hook must not block: it would delay the packets of all subscribers")
