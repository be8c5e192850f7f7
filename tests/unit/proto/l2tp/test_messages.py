"""The control messages (RFC 2661 section 6) and how they are refused (4.2, 7.1)."""

from __future__ import annotations

import dataclasses
from hashlib import md5

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l2tpns.errors import ProtocolError
from l2tpns.proto.l2tp import avp
from l2tpns.proto.l2tp.codes import Bearer, DisconnectCode, DisconnectDirection, Framing
from l2tpns.proto.l2tp.header import parse_control
from l2tpns.proto.l2tp.messages import (
    CDN,
    HELLO,
    ICCN,
    ICRP,
    ICRQ,
    LAYOUT,
    MESSAGES,
    OCCN,
    OCRP,
    OCRQ,
    SCCCN,
    SCCRP,
    SCCRQ,
    SLI,
    VERSION_1_0,
    WEN,
    Accm,
    CallErrors,
    CdnResult,
    DisconnectCause,
    ErrorCode,
    Message,
    MessageError,
    MessageType,
    ProxyAuthenType,
    Q931Cause,
    ResultCode,
    StopCCN,
    StopCcnResult,
    Tie,
    UnknownMessage,
    break_tie,
    decode,
    describe_result,
    encode,
    is_session_message,
    tunnel_auth_response,
)

SECRET = b"tunnel secret"


def counting(size: int) -> bytes:
    return bytes(index % 256 for index in range(size))


def raw(number: int, value: bytes, *, m: bool = True, h: bool = False, vendor: int = 0, reserved: int = 0) -> bytes:
    flags = 0x8000 * m | 0x4000 * h | reserved << 10 | (6 + len(value))
    return flags.to_bytes(2, "big") + vendor.to_bytes(2, "big") + number.to_bytes(2, "big") + value


def typed(message_type: int, *avps: bytes, m: bool = True) -> bytes:
    return raw(0, message_type.to_bytes(2, "big"), m=m) + b"".join(avps)


def refused(body: bytes, secret: bytes = b"") -> MessageError:
    with pytest.raises(MessageError) as caught:
        decode(body, secret)
    return caught.value


# -- golden octets ----------------------------------------------------------------------------------------------------

# What xl2tpd 1.3.18 named "lac" was seen to send, AVP by AVP, with a challenge
XL2TPD_SCCRQ = bytes.fromhex(
    "c802 007a 0000 0000 0000 0000"  # T, L, S, version 2; 122 octets; tunnel 0, session 0, Ns 0, Nr 0
    "8008 0000 0000 0001"  # Message Type SCCRQ
    "8008 0000 0002 0100"  # Protocol Version 1.0
    "800a 0000 0003 00000003"  # Framing Capabilities: async and sync
    "800a 0000 0004 00000000"  # Bearer Capabilities: none
    "0008 0000 0006 0690"  # Firmware Revision 0x690, M=0
    "8009 0000 0007 6c6163"  # Host Name lac
    "0013 0000 0008 78656c6572616e63652e636f6d"  # Vendor Name xelerance.com, M=0
    "8008 0000 0009 2a1f"  # Assigned Tunnel ID 0x2a1f
    "8008 0000 000a 0004"  # Receive Window Size 4
    "8016 0000 000b 00112233445566778899aabbccddeeff"  # Challenge
)
XL2TPD = SCCRQ(
    protocol_version=VERSION_1_0,
    framing_capabilities=Framing.ASYNC | Framing.SYNC,
    bearer_capabilities=0,
    firmware_revision=0x690,
    host_name=b"lac",
    vendor_name=b"xelerance.com",
    assigned_tunnel_id=0x2A1F,
    receive_window_size=4,
    challenge=bytes.fromhex("00112233445566778899aabbccddeeff"),
)


def test_the_sccrq_of_xl2tpd_is_understood_and_we_would_write_the_same_octets() -> None:
    header = parse_control(XL2TPD_SCCRQ)
    assert (header.tunnel_id, header.session_id, header.ns, header.nr) == (0, 0, 0, 0)
    message = decode(header.body)
    assert message == XL2TPD
    assert message.warnings == ()
    assert encode(XL2TPD) == header.body


# An ICRQ as an access concentrator with AVPs of its own sends it
ICRQ_BODY = bytes.fromhex(
    "8008 0000 0000 000a"  # Message Type ICRQ
    "8008 0000 000e 0051"  # Assigned Session ID 81
    "800a 0000 000f 00000bb8"  # Call Serial Number 3000
    "800a 0000 0012 00000001"  # Bearer Type digital
    "000a 0000 0019 20000003"  # Physical Channel ID
    "800a 0000 0016 35353531"  # Calling Number 5551
    "8009 0000 0015 313233"  # Called Number 123
    "000a 0009 0064 00000007"  # AVP 100 of vendor 9, M=0
)


def test_an_icrq_with_an_avp_of_a_vendor_is_understood() -> None:
    message = decode(ICRQ_BODY)
    assert message == ICRQ(
        assigned_session_id=81,
        call_serial_number=3000,
        bearer_type=Bearer.DIGITAL,
        physical_channel_id=0x20000003,
        calling_number=b"5551",
        called_number=b"123",
    )
    assert message.warnings == ("unknown AVP 100 of vendor 9, ignored",)


# -- every message ----------------------------------------------------------------------------------------------------

FULL: list[Message] = [
    SCCRQ(
        protocol_version=VERSION_1_0,
        framing_capabilities=3,
        bearer_capabilities=3,
        firmware_revision=1,
        host_name=b"lac.example",
        vendor_name=b"vendor",
        assigned_tunnel_id=1,
        receive_window_size=8,
        challenge=b"challenge",
        tie_breaker=b"12345678",
    ),
    SCCRP(
        protocol_version=VERSION_1_0,
        framing_capabilities=3,
        bearer_capabilities=0,
        firmware_revision=1,
        host_name=b"lns.example",
        vendor_name=b"vendor",
        assigned_tunnel_id=0xFFFF,
        receive_window_size=8,
        challenge=b"c",
        challenge_response=bytes(16),
    ),
    SCCCN(challenge_response=b"0123456789abcdef"),
    StopCCN(assigned_tunnel_id=7, result_code=ResultCode(StopCcnResult.SHUTTING_DOWN, 0, "going down")),
    HELLO(),
    OCRQ(
        assigned_session_id=1,
        call_serial_number=2,
        minimum_bps=3,
        maximum_bps=4,
        bearer_type=1,
        framing_type=1,
        called_number=b"5550100",
        sub_address=b"9",
    ),
    OCRP(assigned_session_id=1, physical_channel_id=5),
    OCCN(tx_connect_speed=64000, framing_type=1, rx_connect_speed=128000, sequencing_required=True),
    ICRQ(
        assigned_session_id=9,
        call_serial_number=0xFFFFFFFF,
        bearer_type=0,
        physical_channel_id=1,
        calling_number=b"",
        called_number=b"555",
        sub_address=b"1",
    ),
    ICRP(assigned_session_id=4711),
    ICCN(
        tx_connect_speed=10_000_000,
        framing_type=1,
        rx_connect_speed=1_000_000,
        sequencing_required=True,
        initial_received_lcp_confreq=bytes.fromhex("0104 05d4"),
        last_sent_lcp_confreq=bytes.fromhex("0305 c22305"),
        last_received_lcp_confreq=bytes.fromhex("0506 01020304"),
        proxy_authen_type=ProxyAuthenType.CHAP,
        proxy_authen_name=b"user@example",
        proxy_authen_challenge=bytes(16),
        proxy_authen_id=3,
        proxy_authen_response=b"R" * 16,
        private_group_id=b"blue",
    ),
    CDN(
        result_code=ResultCode(CdnResult.GENERAL, ErrorCode.TRY_ANOTHER, "full"),
        assigned_session_id=9,
        q931_cause=Q931Cause(16, 0x45, b"normal"),
        disconnect_cause=DisconnectCause(DisconnectCode.NORMAL, 0xC021, DisconnectDirection.PEER, "bye"),
    ),
    WEN(call_errors=CallErrors(1, 2, 3, 4, 5, 6)),
    SLI(accm=Accm(0, 0xFFFFFFFF)),
]


def test_there_is_a_full_example_of_every_message() -> None:
    assert [message.message_type for message in FULL] == list(MESSAGES) == list(MessageType)


@pytest.mark.parametrize("message", FULL, ids=lambda message: type(message).__name__)
def test_every_message_can_be_read_as_it_was_written(message: Message) -> None:
    body = encode(message)
    assert decode(body) == message
    assert decode(body).warnings == ()
    assert body[:8] == bytes.fromhex("8008 0000 0000") + message.message_type.to_bytes(2, "big")


@pytest.mark.statement(25, 28)
@pytest.mark.parametrize("message", FULL, ids=lambda message: type(message).__name__)
def test_every_message_can_be_sent_with_hidden_avps(message: Message) -> None:
    body = encode(message, secret=SECRET, random=counting, hide=True)
    assert decode(body, SECRET) == message
    hideable = [slot for slot in LAYOUT[message.message_type] if slot.avp.hideable]
    assert (raw(36, counting(16)) == body[8:30]) == bool(hideable)  # the vector comes before what it hides
    if isinstance(message, ICCN):
        assert b"user@example" not in body


def test_hiding_needs_a_secret_and_randomness() -> None:
    for options in ({"secret": SECRET}, {"random": counting}):
        with pytest.raises(ValueError, match="needs a secret"):
            encode(HELLO(), hide=True, **options)  # type: ignore[arg-type]


def test_a_password_from_the_lac_is_not_printed() -> None:
    message = ICCN(tx_connect_speed=1, framing_type=1, proxy_authen_response=b"hunter2")
    assert "hunter2" not in repr(message)


# Section 6 word for word: "The following AVPs MUST be present", without Message Type
REQUIRED = {
    SCCRQ: {2, 7, 3, 9},
    SCCRP: {2, 3, 7, 9},
    SCCCN: set(),
    StopCCN: {9, 1},
    HELLO: set(),
    ICRQ: {14, 15},
    ICRP: {14},
    ICCN: {24, 19},
    OCRQ: {14, 15, 16, 17, 18, 19, 21},
    OCRP: {14},
    OCCN: {24, 19},
    CDN: {1, 14},
    WEN: {34},
    SLI: {35},
}
# and "MAY be present", with RFC 3145 for the CDN
OPTIONAL = {
    SCCRQ: {4, 10, 11, 5, 6, 8},
    SCCRP: {4, 6, 8, 10, 11, 13},
    SCCCN: {13},
    ICRQ: {18, 25, 22, 21, 23},
    ICCN: {26, 27, 28, 29, 30, 31, 32, 33, 37, 38, 39},
    OCRQ: {23},
    OCRP: {25},
    OCCN: {38, 39},
    CDN: {12, 46},
}


@pytest.mark.statement(67, 68, 69, 70, 71, 73, 75)
def test_every_message_has_the_avps_of_section_6() -> None:
    for number, cls in MESSAGES.items():
        assert {slot.avp.number for slot in LAYOUT[number] if slot.required} == REQUIRED[cls], cls.__name__
        assert {slot.avp.number for slot in LAYOUT[number] if not slot.required} == OPTIONAL.get(cls, set())


# What RFC 2661 demands and nothing of ours depends on: the figures of a line or a call, and what is only counted.
HARMLESS = {OCRQ: {15, 16, 17, 18, 19}, OCCN: {19, 24}, ICRQ: {15}, ICCN: {19, 24}, WEN: {34}, SLI: {35}}


def without(message: Message, *missing: int) -> bytes:
    return typed(
        message.message_type,
        *(
            avp.encode_avp(slot.avp, getattr(message, slot.name))
            for slot in LAYOUT[message.message_type]
            if slot.avp.number not in missing
        ),
    )


@pytest.mark.statement(34, 67, 68, 70, 71, 73)
@pytest.mark.parametrize(
    ("message", "missing"),
    [(message, n) for message in FULL for n in sorted(REQUIRED[type(message)] - HARMLESS.get(type(message), set()))],
    ids=lambda value: type(value).__name__ if isinstance(value, Message) else str(value),
)
def test_each_missing_avp_is_refused_by_its_name_and_the_sender_can_be_answered(message: Message, missing: int) -> None:
    error = refused(without(message, missing))
    assert (error.result_code, error.error_code, error.message_type) == (2, 3, message.message_type)
    assert error.text == f"{avp.TABLE[missing].name} (AVP {missing}) is missing"
    wanted = getattr(message, "assigned_session_id", getattr(message, "assigned_tunnel_id", 0))
    assert error.assigned_id == (0 if missing in (9, 14) else wanted)
    assert error.session == is_session_message(message.message_type)


@pytest.mark.statement(71, 74, 75)
@pytest.mark.parametrize(
    ("message", "missing"),
    [(message, number) for message in FULL for number in sorted(HARMLESS.get(type(message), ()))],
    ids=lambda value: type(value).__name__ if isinstance(value, Message) else str(value),
)
def test_a_missing_avp_that_nothing_depends_on_is_named_in_a_warning_only(message: Message, missing: int) -> None:
    (slot,) = (slot for slot in LAYOUT[message.message_type] if slot.avp.number == missing)
    read = decode(without(message, missing))
    assumed = None if missing in (34, 35) else 0
    assert read == dataclasses.replace(message, **{slot.name: assumed})
    assert len(read.warnings) == 1 and read.warnings[0].startswith(f"{slot.avp} is missing")


def test_an_avp_of_the_wrong_length_is_not_called_missing() -> None:
    serial = decode(typed(MessageType.ICRQ, raw(14, b"\0\5"), raw(15, b"")))
    assert serial == ICRQ(assigned_session_id=5, call_serial_number=0)
    assert serial.warnings == ("Call Serial Number (AVP 15) has the wrong length (0, expected 4), ignored",)
    error = refused(typed(MessageType.ICRQ, raw(14, b"\0\0\0\5", m=False), raw(15, bytes(4))))
    assert error.text == "Assigned Session ID (AVP 14) has the wrong length (4, expected 2)"
    assert (error.result_code, error.error_code) == (2, ErrorCode.LENGTH)


def test_every_avp_that_is_ignored_is_listed_up_to_a_limit() -> None:
    many = [raw(100 + number, b"", m=False) for number in range(50)]
    warnings = decode(typed(MessageType.HELLO, *many)).warnings
    assert warnings[:-1] == tuple(f"unknown AVP {100 + n}, ignored" for n in range(avp.MAX_WARNINGS))
    assert warnings[-1] == f"and {50 - avp.MAX_WARNINGS} more"


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.statement(20)
def test_an_unknown_avp_with_m_0_is_ignored_and_the_message_counts() -> None:
    message = decode(typed(MessageType.ICRP, raw(99, b"?", m=False), raw(14, b"\0\5")))
    assert message == ICRP(assigned_session_id=5)
    assert message.warnings == ("unknown AVP 99, ignored",)


@pytest.mark.statement(21)
def test_an_unknown_avp_with_m_1_ends_the_session_of_a_session_message() -> None:
    error = refused(typed(MessageType.ICRQ, raw(99, b"?"), raw(14, b"\x12\x34"), raw(15, bytes(4))))
    assert (error.result_code, error.error_code) == (CdnResult.GENERAL, ErrorCode.UNKNOWN_AVP) == (2, 8)
    assert error.session
    assert error.assigned_id == 0x1234  # read though it came after the mistake: the CDN needs it
    assert "AVP 99" in error.text
    assert isinstance(error, ProtocolError)


@pytest.mark.statement(21)
def test_an_unknown_avp_with_m_1_ends_the_tunnel_of_a_tunnel_message() -> None:
    error = refused(parse_control(XL2TPD_SCCRQ).body + raw(5, b"?", vendor=9))
    assert (error.result_code, error.error_code) == (StopCcnResult.GENERAL, ErrorCode.UNKNOWN_AVP)
    assert not error.session
    assert error.assigned_id == 0x2A1F
    assert "AVP 5 of vendor 9" in error.text


@pytest.mark.statement(22)
def test_a_malformed_mandatory_avp_is_refused_and_an_optional_one_is_as_if_absent() -> None:
    error = refused(typed(MessageType.ICCN, raw(24, bytes(4)), raw(19, bytes(4)), raw(39, b"\1")))
    assert (error.result_code, error.error_code, error.session) == (2, ErrorCode.LENGTH, True)
    message = decode(typed(MessageType.ICCN, raw(24, bytes(4)), raw(19, bytes(4)), raw(38, b"\1\0", m=False)))
    assert message == ICCN(tx_connect_speed=0, framing_type=0)
    assert len(message.warnings) == 1


def test_a_known_avp_in_the_wrong_message_is_ignored_with_a_warning() -> None:
    message = decode(typed(MessageType.ICRP, raw(14, b"\0\5"), raw(10, b"\0\4")))
    assert message == ICRP(assigned_session_id=5)
    assert message.warnings == ("Receive Window Size (AVP 10) does not belong here, ignored",)


@pytest.mark.statement(24)
def test_an_unknown_message_type_clears_the_tunnel_or_is_ignored_as_its_m_bit_says() -> None:
    for number in range(0x10000):
        if number in MESSAGES:
            continue
        error = refused(typed(number))
        assert (error.session, error.result_code, error.message_type) == (False, 2, number)
        assert decode(typed(number, m=False)) == UnknownMessage(type=number)


@pytest.mark.statement(24, 164)
def test_the_avps_of_an_unknown_message_with_m_0_do_not_matter() -> None:
    # 29 is the CSUN of RFC 5515
    assert decode(typed(29, raw(99, b"?"), b"\xff", m=False)) == UnknownMessage(type=29)


@pytest.mark.statement(24)
@pytest.mark.parametrize(
    "body",
    [
        raw(14, b"\0\5") + typed(MessageType.ICRP),  # the type is not first
        raw(0, b"\0\6", vendor=9),  # AVP 0 of another vendor
        raw(0, b"\0"),
        raw(0, b"\0\0\6"),
        raw(0, b"\0\6", reserved=1),
        raw(0, b"\0\6" + bytes(14), h=True),  # 4.4.1: it may not be hidden
        b"\x80",
        bytes.fromhex("8008 0000 0000 00"),
    ],
)
def test_a_message_that_does_not_begin_with_its_type_is_refused(body: bytes) -> None:
    error = refused(body, SECRET)
    assert (error.session, error.message_type, error.assigned_id) == (False, 0, 0)


def test_a_malformed_message_type_with_m_0_makes_the_whole_message_ignored() -> None:
    assert decode(raw(0, b"\0\0\6", m=False)) == UnknownMessage(type=0)


@pytest.mark.statement(26)
def test_a_hidden_assigned_session_id_without_our_secret_is_refused() -> None:
    body = encode(ICRQ(assigned_session_id=81, call_serial_number=1), secret=SECRET, random=counting, hide=True)
    error = refused(body)
    assert (error.session, error.error_code, error.assigned_id) == (True, ErrorCode.VALUE, 0)


@pytest.mark.statement(33)
def test_another_version_is_answered_with_stopccn_5_and_ours() -> None:
    body = parse_control(XL2TPD_SCCRQ).body.replace(bytes.fromhex("0002 0100"), bytes.fromhex("0002 0200"))
    error = refused(body)
    assert (error.result_code, error.error_code) == (StopCcnResult.VERSION, 0x0100)
    assert error.assigned_id == 0x2A1F


@pytest.mark.statement(37)
def test_an_sccrq_with_an_empty_host_name_is_refused() -> None:
    body = parse_control(XL2TPD_SCCRQ).body.replace(bytes.fromhex("8009 0000 0007 6c6163"), raw(7, b""))
    assert refused(body).text == "Host Name (AVP 7) has the wrong length (0, expected 1 or more)"


@pytest.mark.statement(43)
@pytest.mark.parametrize("size", range(9))
@pytest.mark.parametrize("message_type", [MessageType.ICRQ, MessageType.CDN])
def test_a_q931_cause_of_any_size_does_no_harm(message_type: MessageType, size: int) -> None:
    body = typed(message_type, raw(14, b"\0\5"), raw(15, bytes(4)), raw(1, b"\0\1"), raw(12, bytes(size)))
    if size < 3:
        assert refused(body).assigned_id == 5
    else:
        message = decode(body)
        assert getattr(message, "q931_cause", None) in (None, Q931Cause(0, 0, bytes(size - 3)))


# -- what fields mean -------------------------------------------------------------------------------------------------


@pytest.mark.statement(35)
def test_an_lns_may_leave_out_bearer_capabilities_or_send_zero() -> None:
    def offer(bearer: int | None) -> bytes:
        return encode(
            SCCRP(
                protocol_version=VERSION_1_0,
                framing_capabilities=3,
                host_name=b"lns",
                assigned_tunnel_id=1,
                bearer_capabilities=bearer,
            )
        )

    assert bytes.fromhex("800a 0000 0004 00000000") in offer(0)
    assert bytes.fromhex("0000 0004") not in offer(None)


@pytest.mark.statement(36)
@pytest.mark.parametrize(
    ("ours", "theirs", "winner"),
    [
        (bytes(8), b"\0\0\0\0\0\0\0\1", Tie.OURS),  # the lower value wins
        (b"\x80" + bytes(7), b"\x7f" + b"\xff" * 7, Tie.THEIRS),
        (b"\1" * 8, b"\1" * 8, Tie.NEITHER),  # equal: both discard
        (None, bytes(8), Tie.THEIRS),  # who has one wins
        (bytes(8), None, Tie.OURS),
        (None, None, Tie.BOTH),  # two tunnels
    ],
)
def test_a_tie_is_broken_as_the_rfc_says(ours: bytes | None, theirs: bytes | None, winner: Tie) -> None:
    assert break_tie(ours, theirs) is winner


@pytest.mark.statement(38)
@pytest.mark.parametrize("message_type", [MessageType.SCCRQ, MessageType.SCCRP, MessageType.STOPCCN])
def test_an_assigned_tunnel_id_of_0_is_refused(message_type: MessageType) -> None:
    full = encode(next(message for message in FULL if message.message_type == message_type))
    at = full.index(bytes.fromhex("8008 0000 0009")) + 6
    error = refused(full[:at] + bytes(2) + full[at + 2 :])
    assert (error.result_code, error.error_code, error.assigned_id) == (2, ErrorCode.VALUE, 0)


@pytest.mark.statement(39)
@pytest.mark.parametrize(("octets", "window"), [(None, 4), ("0000", 1), ("0001", 1), ("ffff", 65535)])
def test_the_window_is_4_when_absent_and_1_when_0(octets: str | None, window: int) -> None:
    body = parse_control(XL2TPD_SCCRQ).body
    old = bytes.fromhex("8008 0000 000a 0004")
    message = decode(body.replace(old, raw(10, bytes.fromhex(octets)) if octets else b""))
    assert isinstance(message, SCCRQ)
    assert message.window == window
    assert message.receive_window_size == (int(octets, 16) if octets else None)


@pytest.mark.statement(40)
def test_the_response_to_a_challenge_is_md5_of_type_secret_and_challenge() -> None:
    challenge = b"challenge"
    assert tunnel_auth_response(2, SECRET, challenge) == md5(b"\x02tunnel secretchallenge").digest()
    assert tunnel_auth_response(3, SECRET, challenge) == md5(b"\x03tunnel secretchallenge").digest()
    assert decode(encode(SCCCN(challenge_response=tunnel_auth_response(3, SECRET, challenge)))) == SCCCN(
        challenge_response=md5(b"\x03" + SECRET + challenge).digest()
    )


@pytest.mark.statement(45)
def test_without_an_rx_speed_the_line_is_symmetric() -> None:
    assert ICCN(tx_connect_speed=64000, framing_type=1).rx_speed == 64000
    assert ICCN(tx_connect_speed=64000, framing_type=1, rx_connect_speed=8000).rx_speed == 8000


@pytest.mark.statement(46)
def test_an_iccn_with_speeds_in_ascii_is_accepted() -> None:
    message = decode(typed(MessageType.ICCN, raw(24, b"115200"), raw(19, bytes(4)), raw(38, b"33600", m=False)))
    assert message == ICCN(tx_connect_speed=115200, framing_type=0, rx_connect_speed=33600)


@pytest.mark.statement(47)
def test_a_private_group_id_is_handed_on_as_it_came() -> None:
    message = decode(typed(MessageType.ICCN, raw(24, bytes(4)), raw(19, bytes(4)), raw(37, b"\xffblue", m=False)))
    assert isinstance(message, ICCN)
    assert message.private_group_id == b"\xffblue"


PROXY = {"name": b"user", "challenge": b"c", "id": 7, "response": b"r"}


@pytest.mark.statement(48)
@pytest.mark.parametrize(
    ("authen_type", "needs"),
    [
        (1, {"name", "response"}),
        (2, {"name", "challenge", "id", "response"}),
        (3, {"name", "id", "response"}),
        (4, set()),
        (5, {"name", "challenge", "id", "response"}),
    ],
)
def test_proxy_authentication_needs_the_avps_of_its_type(authen_type: int, needs: set[str]) -> None:
    def iccn(parts: set[str]) -> ICCN:
        given_parts = {f"proxy_authen_{part}": PROXY[part] for part in parts}
        message = ICCN(tx_connect_speed=1, framing_type=1, proxy_authen_type=authen_type, **given_parts)  # type: ignore[arg-type]
        return message

    assert iccn(needs).proxy_authen_usable
    assert iccn(set(PROXY)).proxy_authen_usable
    for part in needs:
        assert not iccn(needs - {part}).proxy_authen_usable
        assert iccn(needs - {part}).proxy_authen_missing == (f"proxy_authen_{part}",)


@pytest.mark.statement(48, 51)
@pytest.mark.parametrize("authen_type", [None, 0, 6, 0xFFFF])
def test_without_a_known_proxy_authen_type_there_is_nothing_to_use(authen_type: int | None) -> None:
    message = ICCN(tx_connect_speed=1, framing_type=1, proxy_authen_type=authen_type, proxy_authen_name=b"user")
    assert not message.proxy_authen_usable
    assert message.proxy_authen_missing == ()


@pytest.mark.statement(49)
def test_a_proxy_authen_id_with_an_upper_octet_makes_the_proxy_data_incomplete() -> None:
    full = next(message for message in FULL if isinstance(message, ICCN))
    assert full.proxy_authen_usable
    bad = decode(encode(full).replace(bytes.fromhex("0000 0020 0003"), bytes.fromhex("0000 0020 0103")))
    assert isinstance(bad, ICCN)
    assert not bad.proxy_authen_usable
    assert bad.proxy_authen_missing == ("proxy_authen_id",)


@pytest.mark.statement(72)
def test_outgoing_calls_are_read_so_that_they_can_be_refused_by_session() -> None:
    for cls, needs in ((OCRQ, True), (OCRP, True), (OCCN, False)):
        message = next(message for message in FULL if isinstance(message, cls))
        assert is_session_message(message.message_type)
        assert getattr(decode(encode(message)), "assigned_session_id", None) == (1 if needs else None)


@pytest.mark.statement(74)
def test_a_wen_carries_its_six_counters_in_the_order_of_the_rfc() -> None:
    octets = bytes.fromhex("8020 0000 0022 0000 00000001 00000002 00000003 00000004 00000005 00000006")
    assert decode(typed(MessageType.WEN, octets)) == WEN(
        call_errors=CallErrors(crc=1, framing=2, hardware_overruns=3, buffer_overruns=4, timeouts=5, alignment=6)
    )


@pytest.mark.statement(163)
def test_a_cdn_with_a_ppp_disconnect_cause_is_accepted() -> None:
    body = typed(MessageType.CDN, raw(1, b"\0\3"), raw(14, b"\0\5"), raw(46, b"\0\x10\xc0\x23\1no", m=False))
    message = decode(body)
    assert isinstance(message, CDN)
    assert message.disconnect_cause == DisconnectCause(
        DisconnectCode.AUTH_FAILED, 0xC023, DisconnectDirection.PEER, "no"
    )


# -- codes ------------------------------------------------------------------------------------------------------------


@pytest.mark.statement(30)
def test_the_result_codes_of_stopccn() -> None:
    names = "CLEAR GENERAL EXISTS NOT_AUTHORISED VERSION SHUTTING_DOWN FSM"
    assert [StopCcnResult[name] for name in names.split()] == list(range(1, 8))
    assert len(StopCcnResult) == 7


@pytest.mark.statement(31)
def test_the_result_codes_of_cdn() -> None:
    names = (
        "LOST_CARRIER GENERAL ADMINISTRATIVE NO_FACILITIES NO_FACILITIES_EVER BAD_DESTINATION NO_CARRIER BUSY "
        "NO_DIAL_TONE NOT_IN_TIME NO_FRAMING"
    )
    assert [CdnResult[name] for name in names.split()] == list(range(1, 12))
    assert len(CdnResult) == 11


@pytest.mark.statement(32)
def test_the_general_error_codes() -> None:
    names = "NONE NO_CONTROL_CONNECTION LENGTH VALUE RESOURCES SESSION_ID VENDOR TRY_ANOTHER UNKNOWN_AVP"
    assert [ErrorCode[name] for name in names.split()] == list(range(9))
    assert len(ErrorCode) == 9


@pytest.mark.statement(163)
def test_the_disconnect_codes_count_from_0_to_20() -> None:
    assert list(DisconnectCode) == list(range(21))


def test_a_result_in_words() -> None:
    assert CdnResult.BUSY.text == "busy signal"
    assert describe_result(14, ResultCode(2, 7, "full")) == "2 general error, 7 try another, full"
    assert describe_result(14, ResultCode(3)) == "3 administrative reasons"
    assert describe_result(4, ResultCode(5, 0x0100)) == "5 protocol version not supported, 256"
    assert describe_result(4, ResultCode(99, 1)) == "99, 1"


def test_session_messages_are_those_of_section_3_2_that_belong_to_a_call() -> None:
    assert [number for number in range(256) if is_session_message(number)] == [7, 8, 9, 10, 11, 12, 14, 15, 16]


# -- any octets -------------------------------------------------------------------------------------------------------

ODD_AVPS = st.builds(
    raw,
    st.integers(0, 47),
    st.binary(max_size=30),
    m=st.booleans(),
    h=st.booleans(),
    reserved=st.sampled_from([0, 0, 1]),
)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 17), st.lists(ODD_AVPS, max_size=6), st.booleans(), st.sampled_from([b"", SECRET]))
def test_any_avps_give_a_message_or_an_error_of_ours(number: int, avps: list[bytes], m: bool, secret: bytes) -> None:
    try:
        message = decode(typed(number, *avps, m=m), secret)
    except MessageError as error:
        assert 1 <= error.result_code <= 5
        assert 0 <= error.assigned_id <= 0xFFFF
        assert error.session == is_session_message(number)
        return
    assert message.message_type == (number if number in MESSAGES else 0)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60))
def test_any_octets_give_a_message_or_an_error_of_ours(octets: bytes) -> None:
    try:
        assert isinstance(decode(octets, SECRET), Message)
    except MessageError:
        pass


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(FULL), st.data())
def test_a_message_with_octets_changed_or_cut_gives_a_message_or_an_error_of_ours(
    message: Message, data: st.DataObject
) -> None:
    body = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(body)))
    try:
        assert isinstance(decode(bytes(body[:cut]), SECRET), Message)
    except MessageError:
        pass
