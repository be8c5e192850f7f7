"""What the daemon reads from an Access-Accept or Access-Reject (RFC 2865, RFC 2869; reference: RADIUS attributes)."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network

import pytest

from l2tpns.errors import WireError
from l2tpns.proto.ppp.credentials import MS_CHAP_2, Credentials
from l2tpns.radius.attribute_values import split_avpair
from l2tpns.radius.auth import RadiusBackend
from l2tpns.radius.reply import parse_reply
from l2tpns.radius.reply_packet import decode_reply
from l2tpns.radius.types import Assign, AuthReply, FramedRoute
from tests.lab.memory_log import MemoryLog
from tests.lab.radius_parts import SECRET, chap, login, mschap, mschapv2, settings_for
from tests.lab.radius_server import (
    ACCEPT,
    REJECT,
    RadiusServer,
    Request,
    User,
    ip,
    join,
    make_reply,
    u32,
    vsa,
)

DNS1, DNS2 = IPv4Address("192.0.2.53"), IPv4Address("192.0.2.54")


def read(*attributes: tuple[int, bytes], code: int = ACCEPT, log: MemoryLog | None = None):
    body = join(attributes)
    raw = bytes([code, 1]) + (20 + len(body)).to_bytes(2, "big") + bytes(16) + body
    return parse_reply(decode_reply(raw), (log or MemoryLog()).get())


@pytest.mark.statement(140)
@pytest.mark.parametrize(
    "attribute, assign, address",
    [
        ([], Assign.POOL, None),
        ([(8, ip("0.0.0.0"))], Assign.POOL, None),  # as some servers write the next
        ([(8, ip("255.255.255.254"))], Assign.POOL, None),
        ([(8, ip("255.255.255.255"))], Assign.PEER, None),
        ([(8, ip("10.0.0.5"))], Assign.FIXED, IPv4Address("10.0.0.5")),
    ],
)
def test_framed_ip_address_says_who_chooses(attribute, assign, address):
    reply = read(*attribute)
    assert (reply.assign, reply.address) == (assign, address)


@pytest.mark.parametrize("address", ["0.0.0.1", "127.0.0.1", "224.0.0.1", "240.0.0.1", "255.0.0.1", "255.255.255.253"])
def test_an_address_that_nobody_can_have_refuses_the_login(address):
    with pytest.raises(WireError):
        read((8, ip(address)))


@pytest.mark.parametrize("number", [6, 7, 8, 12, 27, 28, 29, 64, 85, 135, 136])
@pytest.mark.parametrize("length", [0, 1, 3, 5, 253])
def test_a_number_of_a_wrong_length_makes_the_reply_invalid(number, length):
    with pytest.raises(WireError):
        read((number, bytes(length)))


def test_an_accept_with_an_invalid_attribute_is_a_refusal():
    with RadiusServer(SECRET, {b"alice": User(b"secret", [(8, b"\x0a\x00\x00")])}) as server:
        backend = RadiusBackend(settings_for(server), MemoryLog().get())
        assert not backend.authenticate(login()).accepted
        backend.close()


@pytest.mark.statement(141)
def test_framed_routes_are_read_and_bad_ones_left_out_with_a_word():
    log = MemoryLog()
    reply = read(
        (22, b"192.168.1.0/24 0.0.0.0 1"),
        (22, b"0.0.0.0/0 0.0.0.0 1"),
        (22, b"nonsense"),
        (22, b"192.168.2.0/24 10.0.0.5 7"),
        (22, b"192.168.1.0/24 0.0.0.0 1"),
        log=log,
    )
    assert reply.routes == (
        FramedRoute(IPv4Network("192.168.1.0/24")),
        FramedRoute(IPv4Network("192.168.2.0/24"), IPv4Address("10.0.0.5"), 7),
    )
    assert len(log.records("framed_route_refused")) == 2


@pytest.mark.statement(143)
def test_timeouts_and_termination_action_are_read():
    reply = read((27, u32(3600)), (28, u32(300)), (29, u32(1)), (24, b"state"))
    assert (reply.session_timeout, reply.idle_timeout, reply.termination_action) == (3600, 300, 1)
    assert reply.state == b"state"
    assert read().session_timeout is None and read().idle_timeout is None and read().termination_action == 0
    assert read((27, u32(0))).session_timeout == 0


@pytest.mark.statement(151)
@pytest.mark.parametrize(
    "seconds, interval", [(0, 0), (1, 60), (59, 60), (60, 60), (61, 61), (600, 600), (2**32 - 1, 2**32 - 1)]
)
def test_an_interim_interval_is_at_least_a_minute_and_zero_is_none(seconds, interval):
    assert read((85, u32(seconds))).interim == interval


@pytest.mark.parametrize("number, field", [(27, "session_timeout"), (28, "idle_timeout"), (29, "termination_action")])
@pytest.mark.parametrize("value", [0, 1, 2, 2**31, 2**32 - 1])
def test_numbers_without_a_range_are_read_as_they_are(number, field, value):
    assert getattr(read((number, u32(value))), field) == value


@pytest.mark.parametrize(
    "value, mtu",
    [(0, None), (1, None), (63, None), (64, 64), (1492, 1492), (65535, 65535), (65536, None), (2**32 - 1, None)],
)
def test_an_mtu_outside_of_its_range_is_left_out_with_a_word(value, mtu):
    log = MemoryLog()
    assert read((12, u32(value)), log=log).mtu == mtu
    assert [line["value"] for line in log.records("radius_value_ignored")] == ([value] if mtu is None else [])


@pytest.mark.parametrize(
    "address", ["0.0.0.0", "0.0.0.1", "127.0.0.1", "224.0.0.1", "255.255.255.254", "255.255.255.255"]
)
@pytest.mark.parametrize("number", [135, 136])
def test_an_address_that_no_host_has_is_no_name_server(number, address):
    log = MemoryLog()
    assert read((number, ip(address)), (28, u32(300)), log=log).dns == ()
    assert bool(log.records("radius_value_ignored")) is (address != "0.0.0.0")


@pytest.mark.parametrize("number", [9, 10, 13, 14, 15, 16, 19, 20, 23, 37, 62, 97, 99, 213])
@pytest.mark.parametrize("value", [bytes(4), u32(1), b"\xff" * 4, b""])
def test_attributes_of_what_is_not_built_change_nothing(number, value):
    assert read((number, value)) == read()


def test_without_an_interim_interval_there_is_none():
    assert read().interim is None


@pytest.mark.statement(142)
def test_every_class_is_kept_octet_for_octet():
    assert read((25, b"0x4142"), (25, b"\xff\x00"), (25, b"0x4142")).classes == (b"0x4142", b"\xff\x00", b"0x4142")


@pytest.mark.statement(152)
def test_framed_pool_filter_mtu_name_and_message_are_read():
    reply = read(
        (88, b"gold"), (11, b"a.in"), (11, b"b.out"), (12, u32(1400)), (1, b"alice@isp"), (18, b"hel"), (18, b"lo")
    )
    assert (reply.framed_pool, reply.filter_ids, reply.mtu) == ("gold", ("a.in", "b.out"), 1400)
    assert (reply.user, reply.message) == (b"alice@isp", b"hello")


@pytest.mark.parametrize(
    "attributes",
    [
        [(135, DNS1.packed), (136, DNS2.packed)],
        [vsa(529, (136, DNS2.packed)), vsa(529, (135, DNS1.packed))],
        [vsa(529, (135, DNS1.packed), (136, DNS2.packed))],
        [vsa(311, (29, DNS2.packed), (28, DNS1.packed))],
        [vsa(311, (28, DNS1.packed)), (135, DNS1.packed), (136, DNS2.packed), vsa(311, (29, bytes(4)))],
    ],
)
def test_dns_servers_come_in_three_dialects(attributes):
    assert read(*attributes).dns == (DNS1, DNS2)


@pytest.mark.parametrize(
    "texts, dns",
    [
        ([b"ip:dns-servers=192.0.2.53 192.0.2.54"], (DNS1, DNS2)),
        ([b"ip:dns-servers=192.0.2.53,192.0.2.54"], (DNS1, DNS2)),
        ([b"ip:dns-servers=192.0.2.53"], (DNS1,)),
        ([b"IP:DNS-Servers*192.0.2.53  192.0.2.54 "], (DNS1, DNS2)),
        ([b"ip:dns-servers#1=192.0.2.53", b"ip:dns-servers#2=192.0.2.54"], (DNS1, DNS2)),
        ([b"throttle=yes,ip:dns-servers=192.0.2.54 192.0.2.54 192.0.2.53"], (DNS2, DNS1)),
        ([b"ip:dns-servers=0.0.0.0 192.0.2.53"], (DNS1,)),
        ([b"ip:dns-servers="], ()),
    ],
)
def test_dns_servers_come_in_an_avpair_of_cisco_too(texts, dns):
    log = MemoryLog()
    assert read(*(vsa(9, (1, text)) for text in texts), log=log).dns == dns
    assert log.records("radius_value_ignored") == []


@pytest.mark.parametrize("word", ["resolver.example", "192.0.2", "2001:db8::1", "127.0.0.1", "255.255.255.255"])
def test_what_is_no_name_server_in_an_avpair_is_left_out_with_a_word(word):
    log = MemoryLog()
    assert read(vsa(9, (1, f"ip:dns-servers={word} 192.0.2.53".encode())), log=log).dns == (DNS1,)
    (line,) = log.records("radius_value_ignored")
    assert line["value"] == word


def test_attributes_of_dns_servers_go_before_the_avpair():
    reply = read(vsa(9, (1, b"ip:dns-servers=192.0.2.99")), vsa(311, (28, DNS1.packed)), (135, DNS2.packed))
    assert reply.dns == (DNS2, DNS1, IPv4Address("192.0.2.99"))


def test_attributes_that_nothing_reads_are_named_once_and_their_values_are_not():
    log = MemoryLog()
    supported = [(6, u32(2)), (7, u32(1)), (25, b"class"), (65, u32(1)), vsa(9, (1, b"a=b"))]
    others = [(9, ip("255.255.255.0")), (62, u32(1)), (250, b"s3cret")]
    vendors = [vsa(311, (16, b"s3cret")), vsa(9999, (3, b"s3cret"))]
    attributes = [*supported, *others, *vendors]
    with RadiusServer(SECRET, {b"alice": User(b"secret", attributes)}) as server:
        backend = RadiusBackend(settings_for(server), log.get())
        for _ in range(3):
            assert backend.authenticate(login()).accepted
        backend.close()
    lines = log.records("radius_attribute_ignored")
    assert [line["attribute"] for line in lines] == [
        "Framed-IP-Netmask (9)",
        "Port-Limit (62)",
        "attribute (250)",
        "Microsoft (311), attribute 16",
        "vendor (9999), attribute 3",
    ]
    assert not any("s3cret" in str(line) for line in log.records())


# --- Vendor-Specific


@pytest.mark.statement(138)
def test_one_vendor_specific_may_hold_several_sub_attributes():
    reply = read(vsa(9, (1, b"throttle=yes"), (2, b"other"), (1, b"intercept=no")), vsa(9, (1, b"a=b")))
    assert reply.avpairs == (("throttle", "yes"), ("intercept", "no"), ("a", "b"))


@pytest.mark.statement(138)
@pytest.mark.parametrize(
    "inner",
    [
        "",
        "00",
        "00000009",
        "0000000901",
        "000000090100",
        "000000090101",
        "00000009 01 ff 61",
        "00000009 01 03 61 01 09 62",
    ],
)
def test_sub_attributes_that_do_not_add_up_are_left_out_and_the_login_goes_on(inner):
    reply = read((26, bytes.fromhex(inner)), (8, ip("10.0.0.5")))
    assert reply.accepted and reply.avpairs == () and reply.address == IPv4Address("10.0.0.5")


def test_sub_type_1_of_another_vendor_is_no_cisco_avpair():
    assert read(vsa(10, (1, b"throttle=yes"))).avpairs == ()


@pytest.mark.parametrize(
    "text, pairs",
    [
        (b"intercept=yes,throttle=yes", [("intercept", "yes"), ("throttle", "yes")]),
        (b"throttle=yes", [("throttle", "yes")]),
        (b" throttle = 512 , a=b\0", [("throttle", "512"), ("a", "b")]),
        (b"ip:inacl#1=permit ip any any,log", [("ip:inacl#1", "permit ip any any,log")]),
        (b"lcp:interface-config#1=service-policy input 256", [("lcp:interface-config#1", "service-policy input 256")]),
        (b"a=b=c", [("a", "b=c")]),
        (b"", []),
        (b"nothing", []),
        (b"=x", []),
        (b"a=\xff", [("a", "\\xff")]),
        (b"ip:dns-servers*192.0.2.53 192.0.2.54", [("ip:dns-servers", "192.0.2.53 192.0.2.54")]),
        (b"ip:inacl#1*permit a=b", [("ip:inacl#1", "permit a=b")]),
        (b"throttle*2=x", [("throttle*2", "x")]),
        (b"note=a, b and c=d,throttle=yes", [("note", "a, b and c=d"), ("throttle", "yes")]),
        (
            b"throttle=yes,lcp:interface-config=rate-limit a=1,b=2,ip:route=10.0.0.0 255.0.0.0",
            [("throttle", "yes"), ("lcp:interface-config", "rate-limit a=1,b=2"), ("ip:route", "10.0.0.0 255.0.0.0")],
        ),
    ],
)
def test_an_avpair_is_split_into_keys_and_values(text, pairs):
    assert split_avpair(text, MemoryLog().get()) == pairs


def test_a_reject_brings_its_attributes_for_a_walled_garden():
    reply = read((8, ip("10.9.0.1")), vsa(9, (1, b"garden=yes")), code=REJECT)
    assert not reply.accepted
    assert reply.address == IPv4Address("10.9.0.1") and reply.avpairs == (("garden", "yes"),)


# --- services


@pytest.mark.parametrize(
    "attributes, word",
    [
        *(([(6, u32(number))], "Service-Type") for number in (0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 17, 4711, 2**32 - 1)),
        ([(6, u32(2)), (6, u32(1))], "Login (1)"),
        *(([(6, u32(2)), (7, u32(number))], "Framed-Protocol") for number in (0, 2, 3, 6, 7, 256, 2**32 - 1)),
        ([(7, u32(2))], "SLIP (2)"),
        ([(64, u32(1))], "PPTP (1)"),
        ([(64, u32(0x01000001)), (64, u32(0x0200000A))], "PPTP (1)"),
        ([vsa(311, (7, u32(2)))], "encryption"),
    ],
)
def test_an_accept_for_a_service_that_is_unavailable_counts_as_a_reject(attributes, word):
    reply = read(*attributes, (18, b"Welcome!"), (25, b"gold"), (8, ip("10.0.0.5")))
    assert not reply.accepted and word in reply.why
    assert reply.message == b"service unavailable"
    assert reply.classes == (b"gold",) and reply.address == IPv4Address("10.0.0.5")  # as those of a Reject


@pytest.mark.parametrize(
    "attributes",
    [
        [],
        [(6, u32(2))],
        [(6, u32(2)), (7, u32(1))],
        [(7, u32(1))],
        [(64, u32(3)), (65, u32(1)), (67, b"192.0.2.1")],
        [(64, u32(0x01000001)), (64, u32(0x02000003))],  # RFC 2868 3.1: one of them is the one in use
        [vsa(311, (7, u32(1)))],
        [(15, u32(0)), (19, b"0123"), (13, u32(1)), (10, u32(0)), (62, u32(1))],
    ],
)
def test_ppp_by_l2tp_is_what_there_is(attributes):
    reply = read(*attributes, (18, b"Welcome!"))
    assert reply.accepted and reply.message == b"Welcome!" and reply.why == ""


def test_a_service_in_a_reject_changes_nothing():
    reply = read((6, u32(1)), (18, b"no"), code=REJECT)
    assert not reply.accepted and reply.message == b"no" and reply.why == ""


def test_a_refused_service_is_in_the_log_with_the_user():
    log = MemoryLog()
    with RadiusServer(SECRET, {b"alice": User(b"secret", [(6, u32(6))])}) as server:
        backend = RadiusBackend(settings_for(server), log.get())
        assert not backend.authenticate(login()).accepted
        backend.close()
    (line,) = log.records("radius_service_refused")
    assert line["user"] == "alice" and "Administrative (6)" in line["why"]


# MS-CHAP (RFC 2548 2.1, 2.3)


def ask(answer: Callable[[RadiusServer, Request], list[bytes]], credentials: Credentials) -> tuple[AuthReply, Request]:
    """Return the verdict, and the request that the server got."""
    with RadiusServer(SECRET, {b"alice": User(b"secret")}) as server:
        server.handler = lambda request: answer(server, request)
        backend = RadiusBackend(settings_for(server), MemoryLog().get())
        reply = backend.authenticate(login(credentials))
        backend.close()
        return reply, server.requests[0]


def honest(server: RadiusServer, request: Request) -> list[bytes]:
    return server.answer(request)


def with_success(*values: bytes) -> Callable[[RadiusServer, Request], list[bytes]]:
    """Return a server that accepts with these MS-CHAP2-Success."""
    return lambda _, request: [make_reply(request, ACCEPT, [vsa(311, (26, value)) for value in values])]


PROOF = b"S=" + b"0123456789ABCDEF" * 2 + b"01234567"


@pytest.mark.statement(111)
def test_a_response_of_version_2_is_sent_as_radius_has_it_and_the_proof_comes_back():
    credentials = mschapv2()
    reply, request = ask(honest, credentials)
    assert reply.accepted and reply.proof.startswith(b"S=") and len(reply.proof) == 42
    (value,) = request.vendor(311, 25)
    assert value == bytes([7, 0]) + credentials.response[:-1] and len(value) == 50
    assert request.vendor(311, 11) == [credentials.challenge] and request.one(2) is request.one(3) is None


@pytest.mark.statement(111)
def test_a_response_of_version_1_is_sent_as_radius_has_it():
    credentials = mschap()
    reply, request = ask(honest, credentials)
    assert reply.accepted and not reply.proof
    (value,) = request.vendor(311, 1)
    assert value == bytes([7, 1]) + credentials.response[:-1] and len(value) == 50
    assert request.vendor(311, 11) == [credentials.challenge]


@pytest.mark.statement(280)
def test_the_octets_of_a_request_are_those_of_the_rfcs_example():
    challenge = bytes.fromhex("5b5d7c7d7b3f2f3e3c2c602132262628")
    peer, nt = "21402324255e262a28295f2b3a337c7e", "82309ecd8d708b5ea08faa3981cd83544233114a3d85d6df"
    value = bytes.fromhex(peer + "00" * 8 + nt + "00")
    _, request = ask(honest, Credentials(0xC223, b"User", b"", 0x11, challenge, value, MS_CHAP_2))
    assert bytes.fromhex("1a18000001370b125b5d7c7d7b3f2f3e3c2c602132262628") in request.raw
    assert bytes.fromhex("1a3a00000137193411 00" + peer + "00" * 8 + nt) in request.raw


@pytest.mark.statement(282)
@pytest.mark.parametrize(
    "values, why",
    [
        ([], "MS-CHAP2-Success is missing or invalid"),
        ([b"\x07"], "MS-CHAP2-Success is missing or invalid"),
        ([b"\x07" + PROOF[:-1]], "MS-CHAP2-Success is missing or invalid"),
        ([b"\x07s=" + PROOF[2:]], "MS-CHAP2-Success is missing or invalid"),
        ([b"\x07" + PROOF + b"0"], "MS-CHAP2-Success is missing or invalid"),
        ([PROOF], "MS-CHAP2-Success is missing or invalid"),
        ([b"\x08" + PROOF], "MS-CHAP2-Success is not of this response"),
    ],
)
def test_an_accept_without_the_proof_is_a_refusal(values, why):
    reply, _ = ask(with_success(*values), mschapv2())
    assert not reply.accepted and reply.why == why and not reply.proof


def test_what_follows_the_proof_is_left_out():
    reply, _ = ask(with_success(b"\x07" + PROOF + b" M=hello"), mschapv2())
    assert reply.accepted and reply.proof == PROOF


def test_a_proof_that_was_not_asked_for_is_dropped():
    reply, _ = ask(with_success(b"\x07" + PROOF), chap())
    assert reply.accepted and not reply.proof


@pytest.mark.parametrize("error, code", [(b"E=648 R=1 C=00 V=3 M=expired", 648), (b"", 0), (b"E=", 0), (b"XE=5", 0)])
def test_the_code_of_a_reject_is_kept(error, code):
    reply, _ = ask(
        lambda _, request: [make_reply(request, REJECT, [vsa(311, (2, b"\x07" + error))])], mschapv2(password=b"x")
    )
    assert not reply.accepted and reply.error == code
