"""The standards' names of options and protocols, as an operator reads them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2tpns.proto.ppp.frame import Protocol
from l2tpns.proto.ppp.ipcp import IpcpOption
from l2tpns.proto.ppp.lcp import LcpOption
from l2tpns.proto.ppp.names import IPCP_OPTIONS, LCP_OPTIONS, PROTOCOLS, option_name, option_names, protocol_name
from l2tpns.proto.ppp.options import Option


@pytest.mark.parametrize(
    ("protocol", "kind", "value", "name"),
    [
        (Protocol.LCP, 1, "0578", "Maximum-Receive-Unit 1400"),
        (Protocol.LCP, 3, "c22381", "Authentication-Protocol MS-CHAPv2"),
        (Protocol.LCP, 3, "c22380", "Authentication-Protocol MS-CHAP"),
        (Protocol.LCP, 3, "c22305", "Authentication-Protocol CHAP-MD5"),
        (Protocol.LCP, 3, "c223", "Authentication-Protocol CHAP"),
        (Protocol.LCP, 3, "c22363", "Authentication-Protocol c22363"),
        (Protocol.LCP, 3, "c227", "Authentication-Protocol EAP"),
        (Protocol.LCP, 3, "c023", "Authentication-Protocol PAP"),
        (Protocol.LCP, 4, "c025 00000064", "Quality-Protocol Link Quality Report"),
        (Protocol.LCP, 7, "", "Protocol-Field-Compression"),
        (Protocol.LCP, 8, "", "Address-and-Control-Field-Compression"),
        (Protocol.LCP, 13, "06", "Callback CBCP"),
        (Protocol.LCP, 13, "63", "Callback 99"),
        (Protocol.LCP, 13, "", "Callback"),
        (Protocol.LCP, 17, "064e", "Multilink-MRRU 1614"),
        (Protocol.LCP, 200, "0102", "option 200 0102"),
        (Protocol.IPCP, 2, "002d0f01", "IP-Compression-Protocol Van Jacobson"),
        (Protocol.IPCP, 3, "0a010101", "IP-Address 10.1.1.1"),
        (Protocol.IPCP, 3, "0a01", "IP-Address 0a01"),
        (Protocol.IPCP, 130, "00000000", "Primary-NBNS 0.0.0.0"),
        (Protocol.CCP, 18, "00000001", "option 18 00000001"),
    ],
)
def test_an_option_is_named_with_its_value(protocol: int, kind: int, value: str, name: str):
    assert option_name(protocol, Option(kind, bytes.fromhex(value))) == name


def test_all_options_and_protocols_that_we_know_have_names():
    assert set(LcpOption) <= set(LCP_OPTIONS)
    assert set(IpcpOption) <= set(IPCP_OPTIONS)
    assert set(Protocol) <= set(PROTOCOLS)
    assert protocol_name(0x80FD) == "CCP"
    assert protocol_name(0x4001) == "protocol 0x4001"


@given(st.sampled_from([Protocol.LCP, Protocol.IPCP, Protocol.CCP]), st.integers(0, 255), st.binary(max_size=253))
def test_any_option_of_a_peers_has_a_short_name_in_ascii(protocol: int, kind: int, value: bytes):
    name = option_name(protocol, Option(kind, value))
    assert name.isascii() and name.isprintable() and len(name) < 80


def test_of_many_options_the_first_are_named():
    options = [Option(kind) for kind in range(100, 120)]
    assert option_names(Protocol.LCP, options) == [*(f"option {kind}" for kind in range(100, 108)), "12 more"]
