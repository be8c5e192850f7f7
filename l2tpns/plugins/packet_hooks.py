"""Packet hooks: what stands in a session's path while a plugin has one (reference 7: rx is to the subscriber).

They run in the greenlets that read all subscribers' packets, so they may not wait: whatever would wait (sleep, network,
locks that are taken) raises at that place instead. Their time is measured by the wall clock, which costs a fifth of the
thread's: a warning may blame a plugin for what the machine did.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import greenlet

from l2tpns.dataplane.session_path import DOWN, UP, Tap
from l2tpns.errors import PluginError
from l2tpns.hooks import PLUGIN_RET_ERROR, PLUGIN_RET_OK, PLUGIN_RET_STOP, param_packet_rx, param_packet_tx
from l2tpns.plugins.calls import SLOW, Caller, Function
from l2tpns.plugins.session_api import Session
from l2tpns.runtime.exceptions import shown
from l2tpns.subscriber.session import Session as CoreSession

Chain = tuple[tuple[Function, param_packet_rx], ...]


def make_tap(caller: Caller, session: CoreSession, up: Sequence[Function], down: Sequence[Function]) -> Tap:
    """The tap of one session."""
    chains: tuple[Chain, Chain] = (
        tuple((function, param_packet_tx(*_whose(function, session))) for function in up),
        tuple((function, param_packet_rx(*_whose(function, session))) for function in down),
    )
    assert (UP, DOWN) == (0, 1)

    def tap(direction: int, packet: bytes) -> bytes | None:
        chain = chains[direction]
        if not chain:
            return packet
        reader = greenlet.getcurrent()
        reader.switch_out = _refuse_to_wait  # gevent asks for it wherever a greenlet is about to wait
        try:
            for function, event in chain:
                event.buf = packet
                event.len = len(packet)
                began = perf_counter()
                try:
                    result = function.call(event)
                except BaseException as error:  # it may not wait, so nobody has thrown it: all of it is the plugin's
                    caller.took(function, perf_counter() - began)
                    caller.failed(function, error)
                    continue
                seconds = perf_counter() - began
                if seconds >= SLOW:
                    caller.took(function, seconds)
                else:  # the same, spelt out for speed
                    function.calls += 1
                    function.seconds += seconds
                    if seconds > function.slowest:
                        function.slowest = seconds
                if result is not None and result is not PLUGIN_RET_OK:
                    if type(result) is not int or result not in (PLUGIN_RET_ERROR, PLUGIN_RET_OK, PLUGIN_RET_STOP):
                        caller.nonsense(function, result)
                        continue
                    if result == PLUGIN_RET_ERROR:
                        return None
                changed = event.buf
                if changed is not packet:
                    if type(changed) is not bytes or not changed:
                        caller.failed(function, PluginError(f"buf must be octets (bytes), not {shown(changed)}"))
                        continue
                    packet = changed
                if result == PLUGIN_RET_STOP:
                    break
        finally:
            del reader.switch_out
        return packet

    return tap


def _whose(function: Function, session: CoreSession) -> tuple[int, int, Session]:
    return session.tunnel.id, session.id, Session(session, f"plugin {function.plugin}")


def _refuse_to_wait() -> None:
    raise PluginError("a packet hook may not wait: everybody's packets would wait with it")
