"""Forgetting connections of the kernel's table, however many there are (the kernel is played)."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Network

import pytest

from l2tpns.runtime import cooperative
from l2tpns.system import conntrack
from l2tpns.system.nfnetlink import attribute, nested
from tests.server.slices import Others

ENTRIES = 20_000


class Table:
    """A table full of one subscriber's connections. It answers at once, as the kernel does."""

    def __init__(self) -> None:
        self.deleted = 0

    def dump(self, kind: int, body: bytes) -> Iterator[tuple[int, bytes]]:
        original = nested(1, nested(1, attribute(1, bytes((10, 5, 0, 1))), attribute(2, bytes(4))))
        for number in range(ENTRIES):
            yield 0, original + attribute(12, struct.pack("!I", number))

    def request(self, kind: int, bodies: Sequence[bytes]) -> list[int]:
        self.deleted += len(bodies)
        return [0] * len(bodies)


def test_a_full_table_is_gone_through_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table()
    monkeypatch.setattr(conntrack, "NfNetlink", lambda: table)
    with Others(monkeypatch) as others:
        assert conntrack.Conntrack().forget([IPv4Network("10.5.0.1/32")]) == ENTRIES
    assert table.deleted == ENTRIES
    # Both the list and the batches of deletions; a timer may be late where the machine is busy.
    assert others.turns > (ENTRIES / cooperative.CLOCK + ENTRIES / conntrack.BATCH) / 10 / 4
