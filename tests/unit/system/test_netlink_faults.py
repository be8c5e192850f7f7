"""A kernel that sends no reply, or whose replies are lost: NetlinkError, as for any other failure."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from errno import ENOBUFS
from ipaddress import IPv4Network
from typing import Any

import pytest

from l2tpns.errors import L2tpnsError
from l2tpns.system.ipset import IpSets
from l2tpns.system.netlink_socket import NetlinkError
from l2tpns.system.nfnetlink import NfNetlink
from l2tpns.system.rtnetlink import Netlink, Route

NETWORK = IPv4Network("10.0.0.1/32")


class Deaf:
    """A socket of a kernel that says nothing, or fails."""

    def __init__(self, sending: int = 0, receiving: int = 0) -> None:
        self._ends = os.pipe()
        self._errors = sending, receiving

    def fileno(self) -> int:
        return self._ends[0]

    def sendto(self, *_: Any) -> None:
        if self._errors[0]:
            raise OSError(self._errors[0], os.strerror(self._errors[0]))

    def recv(self, _: int) -> bytes:
        if self._errors[1]:
            raise OSError(self._errors[1], os.strerror(self._errors[1]))
        raise BlockingIOError

    def close(self) -> None:
        for end in self._ends:
            os.close(end)


@pytest.fixture(params=[(0, 0), (ENOBUFS, 0), (0, ENOBUFS)], ids=["silence", "send fails", "answers lost"])
def deaf(request: pytest.FixtureRequest) -> Iterator[Any]:
    deaf = Deaf(*request.param)
    yield deaf
    deaf.close()


ADD_TO_SET: Callable[[NfNetlink], Any] = lambda it: IpSets(it).add("x", NETWORK)  # noqa: E731
LIST_SET: Callable[[NfNetlink], Any] = lambda it: IpSets(it).members("x")  # noqa: E731


@pytest.mark.parametrize("ask", [ADD_TO_SET, LIST_SET], ids=["request", "dump"])
def test_nfnetlink_raises_what_its_callers_catch(deaf: Any, ask: Callable[[NfNetlink], Any]) -> None:
    it = NfNetlink()
    it.close()
    it.answer_timeout = 0.01
    it._socket = deaf
    with pytest.raises(L2tpnsError):
        ask(it)


def test_rtnetlink_does_so_too(deaf: Any) -> None:
    it = Netlink()
    it.close()
    it.answer_timeout = 0.01
    it._socket = deaf
    with pytest.raises(NetlinkError):
        it.add_routes([Route(NETWORK, 1, 4)])
    with pytest.raises(NetlinkError):
        it.link_index("lo")


def test_an_answer_that_came_while_this_process_stood_still_is_read_after_the_time() -> None:
    class Late(Deaf):
        """Report no socket as readable, as if the timer came first, although the reply is there."""

        reads = 0

        def recv(self, _: int) -> bytes:
            self.reads += 1
            if self.reads == 1:
                raise BlockingIOError
            return b"answer"

    it = NfNetlink()
    it.close()
    it.answer_timeout = 0.01
    it._socket = late = Late()
    assert list(it._receive()) == [] and late.reads == 2
    late.close()
