"""Which paths a data plane can serve by plain forwarding, and what their owner may change."""

from __future__ import annotations

import ast
from ipaddress import IPv4Address
from pathlib import Path as File
from typing import Any

import pytest

from l2tpns.config.settings import Config
from l2tpns.dataplane import forward
from l2tpns.dataplane.session_path import CHANGEABLE_FIELDS, USERSPACE_FIELDS, SessionPath, key_of
from l2tpns.dataplane.userspace import UserPlane
from l2tpns.runtime.counters import Counters
from tests.lab.memory_log import MemoryLog

# What plain forwarding is: a header to put in front or take off, checks of addresses and sizes, counters and times.
PLAIN = {
    "address",
    "endpoint",
    "exceeds_rate_in",
    "exceeds_rate_out",
    "header",
    "in_garden",
    "last_ip_rx",
    "last_ip_tx",
    "last_rx",
    "mru",
    "mss",
    "needs_userspace",
    "numbered_header",  # called where `sequenced` says so
    "owns",
    "peer",
    "rate_in",
    "rate_out",
    "window",
    "window_packets",
} | {name for name in SessionPath.__slots__ if name.startswith("dropped_") or name.endswith(("_octets", "_packets"))}


def plain_path() -> SessionPath:
    endpoint: Any = object()
    return SessionPath(key_of(7, 8), endpoint, ("192.0.2.2", 1701), 9, 10, lambda *_: None, now=0.0)


def test_a_path_with_nothing_but_addresses_is_served_by_plain_forwarding() -> None:
    path = plain_path()
    path.address, path.networks, path.mru, path.online = b"\x0a\0\0\x05", ((0xFFFFFF00, 0x0A090000),), 1462, True
    path.changed()
    assert not path.needs_userspace


@pytest.mark.parametrize("field", USERSPACE_FIELDS)
def test_each_field_beyond_plain_forwarding_needs_userspace_as_long_as_it_is_set(field: str) -> None:
    path = plain_path()
    before = getattr(path, field)
    setattr(path, field, True if before is False else object())
    path.changed()
    assert path.needs_userspace
    setattr(path, field, before)
    path.changed()
    assert not path.needs_userspace


def test_a_path_that_is_sequenced_from_the_start_needs_userspace() -> None:
    endpoint: Any = object()
    assert SessionPath(1, endpoint, ("192.0.2.2", 1701), 9, 10, lambda *_: None, sequenced=True).needs_userspace


def test_going_online_applies_what_was_set_before() -> None:
    plane = UserPlane(Config(), Counters(), MemoryLog().get(), lambda *_: None)
    path = plain_path()
    plane.attach(path)
    path.sequenced = True
    plane.online(path, IPv4Address("10.0.0.5"), (), 1462)
    assert path.needs_userspace


def test_what_the_forwarder_consults_is_plain_or_declared_to_need_userspace() -> None:
    tree = ast.parse(File(forward.__file__).read_text())
    consulted = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "path"
    }
    # The queue of the tun device shapes, the kernel encrypts; what awaits its policies is not for the kernel yet.
    assert consulted - PLAIN == set(USERSPACE_FIELDS) - {"shaped", "awaiting_policies", "ipsec"}


def test_what_an_owner_may_change_is_part_of_a_path() -> None:
    assert set(CHANGEABLE_FIELDS) < set(SessionPath.__slots__)
    assert len(set(CHANGEABLE_FIELDS)) == len(CHANGEABLE_FIELDS)
