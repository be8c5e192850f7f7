"""RADIUS packets: framing, hiding, signatures (RFC 2865 sections 3 and 5, RFC 2866 section 3)."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2tpns.errors import WireError
from l2tpns.radius import packets
from l2tpns.radius.auth import fill_access_request, impossible_request
from l2tpns.radius.framed_route import parse_framed_route
from l2tpns.radius.framing import check_framing
from l2tpns.radius.reply import parse_reply
from l2tpns.radius.reply_packet import decode_reply
from l2tpns.radius.settings import RadiusSettings
from l2tpns.radius.types import FramedRoute
from l2tpns.radius.usage import START, fill_accounting_request
from tests.lab.memory_log import MemoryLog
from tests.lab.radius_parts import SECRET, chap, login, pap, usage
from tests.lab.radius_server import Request, split

HERE = IPv4Address("192.0.2.1")
LOG = MemoryLog().get()


def access_request(request=None, authenticator=bytes(range(16))) -> Request:
    packet = packets.new_access_request(9, SECRET, authenticator)
    fill_access_request(packet, request or login(), RadiusSettings(nas_identifier="lns1"), HERE)
    raw = packet.encode()
    return Request(raw, ("", 0), SECRET, split(raw[20:]))


def accounting_request(kind=START, facts=None, **times) -> Request:
    packet = packets.new_accounting_request(9, SECRET)
    times = {"happened": 1_600_000_000.0, "now": 1_600_000_000.0} | times
    fill_accounting_request(packet, kind, facts or usage(), RadiusSettings(nas_identifier="lns1"), HERE, **times)
    raw = packet.encode()
    return Request(raw, ("", 0), SECRET, split(raw[20:]))


@pytest.mark.statement(133)
@pytest.mark.parametrize(
    "octets",
    [
        "",
        "02 01 0014" + "00" * 15,  # 19 octets
        "02 01 0013" + "00" * 16,  # Length 19
        "02 01 0015" + "00" * 16,  # Length 21 of 20 octets
        "02 01 1001" + "00" * 5000,  # Length 4097
    ],
)
def test_a_packet_whose_length_is_impossible_is_refused(octets):
    with pytest.raises(WireError):
        check_framing(bytes.fromhex(octets))


@pytest.mark.statement(133)
def test_octets_beyond_the_length_are_padding():
    packet = bytes.fromhex("02 01 0014" + "00" * 16)
    assert check_framing(packet + b"rubbish") == packet


@pytest.mark.statement(139)
@pytest.mark.parametrize(
    "attributes",
    [
        "08",  # no Length
        "08 00",  # Length 0
        "08 01",  # Length 1
        "08 06 0a0000",  # beyond the packet
        "12 03 41 08 06 0a0000",  # the second one
        "50 11" + "00" * 15,  # Message-Authenticator of 15 octets
        "50 12" + "00" * 16 + "50 12" + "00" * 16,  # two of them
    ],
)
def test_an_attribute_that_does_not_fit_makes_the_packet_malformed(attributes):
    body = bytes.fromhex(attributes)
    with pytest.raises(WireError):
        check_framing(struct.pack("!BBH16s", 2, 1, 20 + len(body), b"") + body)


@pytest.mark.statement(133, 139)
@given(st.binary(max_size=200))
def test_any_octets_give_a_reply_or_an_error_of_ours(octets):
    try:
        parse_reply(decode_reply(octets), LOG)
    except WireError:
        pass


@pytest.mark.statement(138, 139)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([1, 8, 11, 12, 18, 22, 24, 25, 26, 27, 28, 29, 80, 85, 88, 135]),
            st.one_of(
                st.binary(max_size=60),
                st.tuples(
                    st.sampled_from([9, 311, 529, 7]),
                    st.sampled_from([1, 28, 135, 136]),
                    st.integers(0, 255),
                    st.binary(max_size=40),
                ).map(lambda t: struct.pack("!IBB", *t[:3]) + t[3]),
            ),
        ),
        max_size=12,
    )
)
def test_any_attributes_inside_good_framing_give_a_reply_or_an_error_of_ours(attributes):
    body = b"".join(bytes([kind, len(value) + 2]) + value for kind, value in attributes)
    raw = struct.pack("!BBH16s", 2, 1, 20 + len(body), b"") + body
    try:
        parse_reply(decode_reply(raw), LOG)
    except WireError:
        pass


@pytest.mark.statement(136)
def test_a_password_is_padded_to_sixteen_and_hidden_with_authenticator_and_secret():
    request = access_request(login(pap(password=b"secret")))
    key = hashlib.md5(SECRET + bytes(range(16))).digest()
    assert request.one(2) == bytes(a ^ b for a, b in zip(key, b"secret".ljust(16, b"\0"), strict=True))


@pytest.mark.statement(136)
@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 127, 128])
def test_passwords_of_every_length_up_to_128_reach_the_server(length):
    password = b"x" * length
    request = access_request(login(pap(password=password)))
    hidden = request.one(2)
    assert hidden is not None and len(hidden) % 16 == 0 and 16 <= len(hidden) <= 128
    assert request.password == password


@pytest.mark.statement(136)
def test_what_fits_into_no_request_is_never_asked():
    assert impossible_request(login(pap(password=b"x" * 129)))
    assert impossible_request(login(pap(name=b"")))
    assert impossible_request(login(pap(name=b"x" * 254)))
    assert not impossible_request(login(pap(name=b"x" * 253)))
    assert not impossible_request(login(chap()))


@pytest.mark.parametrize("name", [b"0xdeadbeef", b"0x", b"%s%n", b"\xff\xfe", b"12"])
def test_octets_reach_the_server_as_they_are(name):
    assert access_request(login(pap(name=name, password=name))).one(1) == name
    assert access_request(login(pap(name=name, password=name))).password == name


def test_a_class_that_looks_like_hexadecimal_is_echoed_as_it_is():
    request = accounting_request(facts=usage(classes=(b"0x41", b"\x00\xff")))
    assert request.all(25) == [b"0x41", b"\x00\xff"]


@pytest.mark.statement(145)
def test_an_access_request_begins_with_a_message_authenticator_that_holds():
    request = access_request()
    assert request.attributes[0][0] == 80
    assert request.signature_holds


@pytest.mark.statement(146)
def test_an_accounting_request_is_signed_over_itself():
    assert accounting_request().accounting_authenticator_holds


def test_chap_goes_with_its_identifier_and_challenge():
    request = access_request(login(chap(password=b"secret", identifier=7)))
    assert request.one(3)[:1] == b"\x07"
    assert request.chap_matches(b"secret") and not request.chap_matches(b"wrong")
    assert request.one(2) is None


@pytest.mark.statement(152)
def test_an_access_request_tells_who_asks_and_for_which_call():
    request = access_request(
        login(
            called="08001234",
            calling="0123456",
            nas_port_id="7/42",
            tunnel_client="192.0.2.7",
            tunnel_server="192.0.2.1",
            tunnel_host="lac1",
            mtu=1460,
            state=b"again",
        )
    )
    assert request.one(4) == HERE.packed  # NAS-IP-Address
    assert request.one(32) == b"lns1"  # NAS-Identifier
    assert request.number(5) == 42  # NAS-Port
    assert request.number(61) == 5  # NAS-Port-Type Virtual
    assert request.one(87) == b"7/42"  # NAS-Port-Id
    assert (request.number(6), request.number(7)) == (2, 1)  # Framed, PPP
    assert request.number(12) == 1460
    assert (request.one(30), request.one(31)) == (b"08001234", b"0123456")
    assert request.one(44) == b"5F00000000000001"
    assert request.one(64) == b"\0\0\0\x03" and request.one(65) == b"\0\0\0\x01"  # L2TP over IPv4, untagged
    assert (request.one(66), request.one(67), request.one(90)) == (b"192.0.2.7", b"192.0.2.1", b"lac1")
    assert request.one(24) == b"again"


@pytest.mark.parametrize("length", [0, 253, 254, 1024])
def test_numbers_of_any_length_are_cut_to_what_an_attribute_holds(length):
    request = access_request(login(called="1" * length, calling="2" * length))
    assert len(request.one(30) or b"") == min(length, 253)


@pytest.mark.parametrize("host", ["h" * 300, "\x01" * 300, "\u00e9" * 300, "\x1f" + "h" * 252])
def test_any_name_of_a_lac_fits_into_a_request(host):
    facts = {"tunnel_client": "192.0.2.7", "tunnel_server": "192.0.2.1", "tunnel_host": host}
    for request in (access_request(login(**facts)), accounting_request(facts=usage(**facts))):
        name = request.one(90)
        assert name is not None and 250 <= len(name) <= 253
        assert host.startswith(name.lstrip(b"\0").decode())  # whole characters; a tag of 0 goes before a low octet


# --- The longest packets (RFC 2865 3, RFC 2866 3)

LONG = "9" * 300
ROUTES = tuple(FramedRoute(IPv4Network(f"172.{16 + number // 250}.{number % 250}.0/24")) for number in range(240))
CLASSES = tuple(bytes([65 + number]) * 253 for number in range(15))
BILL = (1, 4, 5, 6, 7, 8, 32, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 52, 53, 55, 61)


def longest(**facts):
    known = {"user": b"u" * 253, "called": LONG, "calling": LONG, "nas_port_id": LONG, "connect_info": LONG,
             "tunnel_client": "255.255.255.255", "tunnel_server": "255.255.255.255", "tunnel_host": LONG,
             "tunnel_connection": LONG, "terminate_cause": 1}  # fmt: skip
    return usage(**{**known, **facts})


def left_out(facts, kind="stop"):
    packet = packets.new_accounting_request(9, SECRET)
    return fill_accounting_request(
        packet, kind, facts, RadiusSettings(nas_identifier="l" * 64), HERE, happened=0, now=0
    )


def test_no_access_request_is_too_long():
    facts = {name: LONG for name in ("called", "calling", "nas_port_id", "connect_info", "tunnel_host", "tunnel_client",
                                     "tunnel_server")}  # fmt: skip
    for credentials in (pap(b"u" * 253, b"p" * 128), replace(chap(b"u" * 253), challenge=b"c" * 253)):
        assert len(access_request(login(credentials, mtu=1500, state=b"s" * 253, **facts)).raw) <= 4096


@pytest.mark.statement(142)
@pytest.mark.parametrize("kind", ["start", "interim", "stop"])
@pytest.mark.parametrize(
    "facts, missing",
    [
        ({}, set()),
        ({"routes": ROUTES}, {"Framed-Route"}),
        ({"routes": ROUTES, "classes": CLASSES[:4]}, {"Framed-Route"}),
        ({"routes": ROUTES[:3], "avpairs": ("a=" + "b" * 245,) * 20}, {"Framed-Route", "Cisco-AVPair"}),
        ({"routes": ROUTES[:1], "attributes": (("Filter-Id", "f" * 253),) * 9}, {"Framed-Route", "Filter-Id"}),
    ],
)
def test_a_record_that_is_too_long_loses_what_bills_least(kind, facts, missing):
    request = accounting_request(kind, longest(**facts))
    assert len(request.raw) <= 4096
    assert request.all(25) == list(facts.get("classes", ()))
    assert all(request.one(number) is not None for number in (30, 31, 66, 67, 68, 77, 87, 90))
    assert all(request.one(number) is not None for number in BILL if kind == "stop")
    assert set(left_out(longest(**facts), kind)) == missing
    if missing:  # as much of it as there is room for
        assert len(request.raw) > 4096 - 256


@pytest.mark.statement(142)
def test_class_is_the_last_to_go():
    request = accounting_request("stop", longest(classes=CLASSES, routes=ROUTES))
    assert len(request.raw) <= 4096
    assert request.all(25) == list(CLASSES[:14])  # there is no room for the fifteenth with the user's name and the bill
    assert all(request.one(number) is not None for number in BILL)
    assert request.all(22) == [] and request.all(31) == []
    assert left_out(longest(classes=CLASSES, routes=ROUTES))["Class"] == 1


def test_a_record_that_fits_to_the_octet_loses_nothing():
    short = usage(routes=ROUTES[:145], terminate_cause=1)
    spare = 4096 - len(accounting_request("stop", short).raw)
    assert 0 < spare < 240
    for more, missing in ((spare, 0), (spare + 1, 1)):
        facts = replace(short, user=b"alice" + b"x" * more)
        request = accounting_request("stop", facts)
        assert len(request.raw) == 4096 if not missing else 4096 - 32 < len(request.raw) <= 4096
        assert len(request.all(22)) == 145 - missing


@given(
    st.lists(st.binary(min_size=1, max_size=253), max_size=20),
    st.lists(st.text(min_size=1, max_size=247), max_size=20),
    st.integers(0, 240),
    st.text(max_size=400),
)
def test_any_record_fits_into_a_packet_and_tells_the_bill(classes, avpairs, routes, host):
    facts = longest(classes=tuple(classes), avpairs=tuple(avpairs), routes=ROUTES[:routes], tunnel_host=host)
    request = accounting_request("stop", facts)
    assert len(request.raw) <= 4096
    assert all(request.one(number) is not None for number in BILL)


@pytest.mark.parametrize("pair", ["a=" + "\udcff" * 245, "a=" + "b" * 251, "a=" + "\u00e9" * 247])
def test_a_long_pair_of_a_plugin_is_cut_to_what_the_attribute_holds(pair):
    (sent,) = accounting_request(facts=usage(avpairs=(pair,))).vendor(9, 1)
    assert 244 <= len(sent) <= 247 and sent.startswith(b"a=")
    assert accounting_request(facts=usage(attributes=(("Cisco-AVPair", pair),))).vendor(9, 1) == []


# --- Framed-Route


@pytest.mark.statement(141)
@pytest.mark.parametrize(
    "text, prefix, gateway, metric",
    [
        (b"192.168.1.0/24 192.168.1.1 1", "192.168.1.0/24", "192.168.1.1", 1),
        (b"192.168.1.0/24 192.168.1.1 5 2 -1 3 400", "192.168.1.0/24", "192.168.1.1", 5),
        (b"192.168.1.0/24 0.0.0.0 1", "192.168.1.0/24", None, 1),
        (b"192.168.1.0/24 0.0.0.0", "192.168.1.0/24", None, 1),
        (b"192.168.1.0/24", "192.168.1.0/24", None, 1),
        (b"  192.168.1.77/24\t0.0.0.0 1 \0", "192.168.1.0/24", None, 1),
        (b"10.0.0.0 0.0.0.0 1", "10.0.0.0/8", None, 1),  # class A
        (b"172.16.0.0 0.0.0.0 1", "172.16.0.0/16", None, 1),  # class B
        (b"192.168.1.0 192.168.1.1 1", "192.168.1.0/24", "192.168.1.1", 1),  # class C
        (b"192.168.1.9/32", "192.168.1.9/32", None, 1),
    ],
)
def test_a_framed_route_is_read_as_the_rfc_writes_it(text, prefix, gateway, metric):
    via = IPv4Address(gateway) if gateway else None
    assert parse_framed_route(text) == FramedRoute(IPv4Network(prefix), via, metric)


@pytest.mark.statement(141)
@pytest.mark.parametrize("bits", range(100))
def test_prefix_lengths_from_0_to_99_are_a_route_or_an_error(bits):
    text = b"172.20.0.0/%d 0.0.0.0 1" % bits
    if bits in range(6, 33):
        assert parse_framed_route(text).prefix.prefixlen == bits
    else:  # below 6 the prefix would reach beyond what a subscriber may have
        with pytest.raises(ValueError):
            parse_framed_route(text)


@pytest.mark.parametrize(
    "text",
    [b"0.0.0.0/0", b"0.0.0.0/1", b"128.0.0.0/1", b"0.0.0.0", b"127.0.0.0/8", b"127.1.2.3/32", b"224.0.0.0/4",
     b"239.1.1.1/32", b"240.0.0.0/8", b"255.255.255.255/32", b"169.254.0.0/16", b"10.0.0.0/8 224.0.0.1 1"],
)  # fmt: skip
def test_prefixes_that_no_subscriber_owns_are_refused(text):
    with pytest.raises(ValueError):
        parse_framed_route(text)


@pytest.mark.parametrize(
    "text", [b"", b"default", b"10.0.0/8", b"10.0.0.256/24", b"10.0.0.0/", b"10.0.0.0/-1", b"2001:db8::/32",
             b"10.0.0.0/8 gw 1", b"10.0.0.0/8 10.0.0.1 x", "\u0661\u0660.0.0.0/8".encode(), b"10.0.0.0/8; rm -rf /"]
)  # fmt: skip
def test_a_framed_route_that_is_none_is_an_error_of_value(text):
    with pytest.raises(ValueError):
        parse_framed_route(text)


@given(st.binary(max_size=60))
def test_any_octets_are_a_framed_route_or_an_error_of_value(octets):
    try:
        parse_framed_route(octets)
    except ValueError:
        pass
