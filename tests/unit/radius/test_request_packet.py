"""A RADIUS request has the octets that pyrad would give it; only a true reply is taken (RFC 2865 3, RFC 2869 5.14)."""

from __future__ import annotations

import struct
from hashlib import md5
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyrad.packet import AcctPacket, AuthPacket, Packet

from l2tpns.radius import packets
from l2tpns.radius.attributes import ATTRIBUTES, BY_NAME, Type, Use
from l2tpns.radius.auth import fill_access_request
from l2tpns.radius.framing import ACCESS_REQUEST
from l2tpns.radius.reply_packet import decode_reply
from l2tpns.radius.settings import RadiusSettings
from l2tpns.radius.usage import START, STOP, fill_accounting_request
from tests.lab.radius_parts import SECRET, chap, login, pap, usage

DICTIONARY = packets.load_dictionary()
HERE = IPv4Address("192.0.2.1")
SETTINGS = RadiusSettings(nas_identifier="lns1")
AUTHENTICATOR = bytes(range(16))
CALL = {"called": "08001234", "calling": "0123456", "nas_port_id": "7/42", "tunnel_client": "192.0.2.7",
        "tunnel_server": "192.0.2.1", "tunnel_host": "\x01lac", "connect_info": "1000/2000"}  # fmt: skip


def by_pyrad(packet):
    """Return the octets that pyrad gives a packet with these attributes."""
    code = {"id": packet.identifier, "secret": packet.secret, "dict": DICTIONARY}
    if packet.code == ACCESS_REQUEST:
        other = AuthPacket(authenticator=packet.authenticator, **code)
        other.add_message_authenticator()
    else:
        other = AcctPacket(**code)
    for key, values in packet.attributes.items():
        other[key] = list(values)
    return other.RequestPacket()


@pytest.mark.statement(145, 152)
@pytest.mark.parametrize("credentials", [pap(), chap()])
@pytest.mark.parametrize("call", [{}, CALL, CALL | {"mtu": 1460, "state": b"again"}])
def test_an_access_request_has_the_octets_that_pyrad_gives_it(credentials, call):
    packet = packets.new_access_request(9, SECRET, AUTHENTICATOR)
    fill_access_request(packet, login(credentials, **call), SETTINGS, HERE)
    assert packet.encode() == by_pyrad(packet)


@pytest.mark.statement(146)
@pytest.mark.parametrize("kind", [START, STOP])
@pytest.mark.parametrize("call", [{}, CALL, {"avpairs": ("a=b", "c=d"), "classes": (b"0x41", b"\x00\xff")}])
def test_an_accounting_request_has_the_octets_that_pyrad_gives_it(kind, call):
    packet = packets.new_accounting_request(9, SECRET)
    facts = usage(**call, terminate_cause=1)
    fill_accounting_request(packet, kind, facts, SETTINGS, HERE, happened=1_600_000_000.0, now=1_600_000_003.0)
    assert packet.encode() == by_pyrad(packet)


@pytest.mark.statement(136)
@given(st.binary(max_size=128))
def test_a_password_is_hidden_as_pyrad_hides_it(password):
    packet = packets.new_access_request(9, SECRET, AUTHENTICATOR)
    assert packet.hide(password) == AuthPacket(secret=SECRET, authenticator=AUTHENTICATOR).PwCrypt(password)


SENT = [each for each in ATTRIBUTES if each.uses & (Use.REQUEST | Use.ACCOUNTING)]
VALUES = {Type.TEXT: ["x", "\x1f", "\u00e9" * 100], Type.INTEGER: [0, 1, 2**32 - 1], Type.DATE: [1_600_000_000],
          Type.ADDRESS: [HERE]}  # fmt: skip


@pytest.mark.parametrize("name, value", [(each.name, value) for each in SENT for value in VALUES.get(each.type, ())])
def test_a_value_has_the_octets_that_pyrad_gives_it(name, value):
    packet, other = packets.new_accounting_request(9, SECRET), AcctPacket(id=9, secret=SECRET, dict=DICTIONARY)
    packets.put_value(packet, name, value)
    other.AddAttribute(name, str(value) if isinstance(value, IPv4Address) else value)
    assert packet.attributes[BY_NAME[name].key] == dict(dict.items(other))[BY_NAME[name].key]
    assert packet.encode() == other.RequestPacket()


def reply_to(packet, code=2, *, secret=SECRET, signed=True, **attributes):
    """Return the decoded reply of a server to a request."""
    request = Packet(packet.code, packet.identifier, secret, packet.authenticator, dict=DICTIONARY)
    reply = request.CreateReply(code=code, **attributes)
    if signed:
        reply.add_message_authenticator()
    return decode_reply(reply.ReplyPacket())


@pytest.mark.statement(138)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([1, 8, 25, 26, 33, 135]),
            st.one_of(
                st.binary(max_size=20),
                st.tuples(
                    st.sampled_from([9, 311, 7]), st.integers(0, 255), st.integers(0, 9), st.binary(max_size=8)
                ).map(lambda parts: struct.pack("!IBB", *parts[:3]) + parts[3]),
            ),
        ),
        max_size=8,
    )
)
def test_a_reply_has_the_attributes_that_pyrad_reads(attributes):
    body = b"".join(bytes([kind, len(value) + 2]) + value for kind, value in attributes)
    raw = struct.pack("!BBH16s", 2, 9, 20 + len(body), AUTHENTICATOR) + body
    reply, other = decode_reply(raw), Packet(packet=raw, dict=DICTIONARY)
    assert reply.attributes == dict(dict.items(other))
    assert (reply.code, reply.identifier, reply.signed) == (other.code, other.id, False)


@pytest.mark.statement(134, 145)
@pytest.mark.parametrize("signed", [True, False])
def test_only_the_reply_of_a_server_with_the_secret_is_authentic(signed):
    packet = packets.new_access_request(9, SECRET, AUTHENTICATOR)
    assert packet.verify(reply_to(packet, signed=signed), signed=False)
    assert packet.verify(reply_to(packet, signed=signed), signed=True) is signed
    assert reply_to(packet, signed=signed).signed is signed
    assert not packet.verify(reply_to(packet, secret=b"another", signed=signed), signed=False)
    other = packets.new_access_request(10, SECRET, AUTHENTICATOR)
    assert not packet.verify(reply_to(other, signed=signed), signed=False)


@pytest.mark.statement(145)
@pytest.mark.parametrize("signed", [True, False])
def test_a_proxy_state_that_was_not_sent_is_the_mark_of_a_forgery(signed):
    packet = packets.new_access_request(9, SECRET, AUTHENTICATOR)
    assert not packet.verify(reply_to(packet, signed=signed, Proxy_State=b"x"), signed=False)


def test_a_message_authenticator_that_does_not_hold_is_refused_whatever_is_demanded():
    packet = packets.new_access_request(9, SECRET, AUTHENTICATOR)
    forged = bytearray(reply_to(packet).raw)
    forged[22] ^= 1  # in the Message-Authenticator; the Response Authenticator is made to hold
    forged[4:20] = md5(forged[:4] + AUTHENTICATOR + forged[20:] + SECRET).digest()
    assert not packet.verify(decode_reply(bytes(forged)), signed=False)


@pytest.mark.statement(146)
def test_the_reply_to_an_accounting_request_needs_no_message_authenticator():
    packet = packets.new_accounting_request(9, SECRET)
    packet.encode()
    assert packet.verify(reply_to(packet, code=5, signed=False), signed=True)
    assert not packet.verify(reply_to(packet, code=5, signed=False, secret=b"another"), signed=True)
