"""The table of RADIUS attributes: consistent, and what is derived from it (RFC 2865 5, RFC 5176 3.2)."""

from __future__ import annotations

from dataclasses import fields
from ipaddress import IPv4Address

import pytest

from l2tpns.radius import packets
from l2tpns.radius.attributes import ATTRIBUTES, BY_KEY, BY_NAME, IN_REPLIES, Attribute
from l2tpns.radius.reply import ignored_attributes, parse_attributes
from l2tpns.radius.reply_packet import decode_reply
from l2tpns.radius.types import Assign, AuthReply, AuthRequest, Usage
from tests.lab.memory_log import MemoryLog
from tests.lab.radius_server import ip, join, u32, vsa

DICTIONARY = packets.load_dictionary()
LOG = MemoryLog().get()
COA_REQUEST = 43


def packet(*attributes: tuple[int, bytes], code: int = COA_REQUEST):
    body = join(attributes)
    raw = bytes([code, 1]) + (20 + len(body)).to_bytes(2, "big") + bytes(16) + body
    return decode_reply(raw)


def names(*owners: type) -> set[str]:
    return {field.name for owner in owners for field in fields(owner)}


def test_no_attribute_is_in_the_table_twice():
    assert len(ATTRIBUTES) == len(BY_NAME) == len(BY_KEY)


@pytest.mark.parametrize("attribute", ATTRIBUTES, ids=lambda attribute: attribute.name)
def test_a_row_names_fields_that_exist(attribute: Attribute):
    assert set(attribute.fills) <= names(AuthReply)
    assert {attribute.source} - {""} <= names(AuthRequest, Usage)
    assert bool(attribute.fills) == (attribute.parse is not None)
    if attribute.fills or attribute.refuse:
        assert attribute in IN_REPLIES and attribute.effect


def test_every_attribute_in_use_is_in_the_dictionary_and_no_other():
    known = {name: (entry.code, entry.type, bool(entry.has_tag)) for name, entry in DICTIONARY.attributes.items()}
    assert known == {each.name: (each.number, each.type.value, each.tagged) for each in ATTRIBUTES if each.uses}


def test_a_packet_fills_the_fields_that_it_mentions_and_no_others():
    assert parse_attributes(packet(), LOG) == {}
    assert parse_attributes(packet((27, u32(600)), (11, b"new.in"), (11, b"new.out")), LOG) == {
        "session_timeout": 600,
        "filter_ids": ("new.in", "new.out"),
    }
    assert parse_attributes(packet((8, ip("10.0.0.5"))), LOG) == {
        "assign": Assign.FIXED,
        "address": IPv4Address("10.0.0.5"),
    }


def test_several_attributes_that_fill_one_field_are_collected_in_the_order_of_the_table():
    pair = vsa(9, (1, b"ip:dns-servers=192.0.2.2 192.0.2.3"))
    read = parse_attributes(packet(pair, (135, ip("192.0.2.2")), vsa(529, (135, ip("192.0.2.1")))), LOG)
    assert read["dns"] == tuple(map(IPv4Address, ("192.0.2.1", "192.0.2.2", "192.0.2.3")))
    assert read["avpairs"] == (("ip:dns-servers", "192.0.2.2 192.0.2.3"),)


def test_an_attribute_that_is_sent_and_not_read_is_named_when_it_comes_in_a_reply():
    received = packet((5, u32(1)), (67, b"192.0.2.1"), (33, b"proxy"), (27, u32(1)))
    assert list(ignored_attributes(received)) == ["NAS-Port (5)", "Tunnel-Server-Endpoint (67)"]
