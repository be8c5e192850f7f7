"""Names of PPP protocols and options for log lines and causes (IANA, "PPP Numbers").

Includes those that l2tpns does not implement: an operator must be able to read what a client wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from ipaddress import IPv4Address

from l2tpns.proto.ppp.frame import Protocol
from l2tpns.proto.ppp.options import Option

MAX_NAMED = 8  # options in one log line
_ADDRESS_SIZE = 4

PROTOCOLS = {
    Protocol.IP: "IP",
    0x002B: "IPX",
    0x002D: "Van Jacobson compressed TCP/IP",
    Protocol.MULTILINK: "Multilink",
    0x0053: "encryption",
    Protocol.IPV6: "IPv6",
    0x00FD: "compressed datagrams",
    0x0281: "MPLS",
    Protocol.IPCP: "IPCP",
    0x8023: "OSINLCP",
    0x8029: "ATCP",
    0x802B: "IPXCP",
    0x8031: "BCP",
    0x803F: "NBFCP",
    0x8053: "ECP",
    Protocol.IPV6CP: "IPv6CP",
    Protocol.CCP: "CCP",
    0x8207: "CDPCP",
    0x8281: "MPLSCP",
    Protocol.LCP: "LCP",
    Protocol.PAP: "PAP",
    0xC025: "Link Quality Report",
    0xC027: "SPAP",
    0xC029: "CBCP",
    0xC02B: "BACP",
    0xC02D: "BAP",
    Protocol.CHAP: "CHAP",
    0xC227: "EAP",
}

# RFC 1994 section 3 and IANA: the octet behind c223.
CHAP_ALGORITHMS = {
    5: "CHAP-MD5",
    6: "CHAP-SHA-1",
    7: "CHAP-SHA-256",
    8: "CHAP-SHA3-256",
    0x80: "MS-CHAP",
    0x81: "MS-CHAPv2",
}

# RFC 1570 2.3 and IANA: the first octet of a Callback option.
CALLBACK_OPERATIONS = {
    0: "by user authentication",
    1: "by dialing string",
    2: "by location identifier",
    3: "by E.164 number",
    4: "by distinguished name",
    6: "CBCP",
}

IP_COMPRESSIONS = {0x0003: "ROHC", 0x002D: "Van Jacobson", 0x0061: "IP header compression"}


def protocol_name(protocol: int) -> str:
    """Return the name of a PPP protocol, such as `IPCP` or `protocol 0x1234`."""
    return PROTOCOLS.get(protocol, f"protocol {protocol:#06x}")


def authentication_name(value: bytes) -> str:
    """Return the name of what an Authentication-Protocol option asks for."""
    protocol = int.from_bytes(value[:2], "big")
    if len(value) == 3 and protocol == Protocol.CHAP and value[2] in CHAP_ALGORITHMS:
        return CHAP_ALGORITHMS[value[2]]
    if len(value) == 2 and protocol in PROTOCOLS:
        return PROTOCOLS[protocol]
    return value[:8].hex()


def _nothing(_: bytes) -> str:
    return ""


def _number(value: bytes) -> str:
    return str(int.from_bytes(value, "big")) if 0 < len(value) <= 4 else value[:8].hex()


def _octets(value: bytes) -> str:
    return value[:8].hex()


def _address(value: bytes) -> str:
    return str(IPv4Address(value)) if len(value) == _ADDRESS_SIZE else value[:8].hex()


def _callback(value: bytes) -> str:
    return CALLBACK_OPERATIONS.get(value[0], str(value[0])) if value else ""


def _protocol(value: bytes) -> str:
    return protocol_name(int.from_bytes(value[:2], "big")) if len(value) >= 2 else value.hex()


def _compression(value: bytes) -> str:
    return IP_COMPRESSIONS.get(int.from_bytes(value[:2], "big"), value[:8].hex())


_Names = dict[int, tuple[str, Callable[[bytes], str]]]

LCP_OPTIONS: _Names = {
    0: ("Vendor-Specific", _octets),
    1: ("Maximum-Receive-Unit", _number),
    2: ("Async-Control-Character-Map", _octets),
    3: ("Authentication-Protocol", authentication_name),
    4: ("Quality-Protocol", _protocol),
    5: ("Magic-Number", _octets),
    7: ("Protocol-Field-Compression", _nothing),
    8: ("Address-and-Control-Field-Compression", _nothing),
    9: ("FCS-Alternatives", _number),
    10: ("Self-Describing-Padding", _number),
    11: ("Numbered-Mode", _octets),
    12: ("Multi-Link-Procedure", _nothing),
    13: ("Callback", _callback),
    14: ("Connect-Time", _nothing),
    15: ("Compound-Frames", _nothing),
    16: ("Nominal-Data-Encapsulation", _nothing),
    17: ("Multilink-MRRU", _number),
    18: ("Multilink-Short-Sequence-Number", _nothing),
    19: ("Multilink-Endpoint-Discriminator", _nothing),
    20: ("Proprietary", _octets),
    21: ("DCE-Identifier", _octets),
    22: ("Multi-Link-Plus-Procedure", _octets),
    23: ("Link-Discriminator", _number),
    24: ("LCP-Authentication", _octets),
    25: ("COBS", _octets),
    26: ("Prefix-Elision", _octets),
    27: ("Multilink-Header-Format", _octets),
    28: ("Internationalization", _octets),
    29: ("Simple-Data-Link", _octets),
}

IPCP_OPTIONS: _Names = {
    1: ("IP-Addresses", _octets),
    2: ("IP-Compression-Protocol", _compression),
    3: ("IP-Address", _address),
    4: ("Mobile-IPv4", _address),
    129: ("Primary-DNS", _address),
    130: ("Primary-NBNS", _address),
    131: ("Secondary-DNS", _address),
    132: ("Secondary-NBNS", _address),
}

_OPTIONS: dict[int, _Names] = {Protocol.LCP: LCP_OPTIONS, Protocol.IPCP: IPCP_OPTIONS}


def option_name(protocol: int, option: Option) -> str:
    """Return an option of LCP or IPCP with its value, such as `Multilink-MRRU 1614`."""
    name, value = _OPTIONS.get(protocol, {}).get(option.type, (f"option {option.type}", _octets))
    return f"{name} {value(option.value)}".rstrip()


def option_names(protocol: int, options: Iterable[Option]) -> list[str]:
    """Return the names of options, MAX_NAMED at most, and the number of those left out."""
    named = [option_name(protocol, option) for option in options]
    return named if len(named) <= MAX_NAMED else [*named[:MAX_NAMED], f"{len(named) - MAX_NAMED} more"]
