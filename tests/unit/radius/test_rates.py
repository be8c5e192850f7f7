"""Rates in the dialects of the vendors: bit/s there, kbit/s here."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2tpns.radius.rates import chosen
from l2tpns.radius.reply import parse_attributes
from l2tpns.radius.reply_packet import decode_reply
from tests.lab.memory_log import MemoryLog
from tests.lab.radius_server import ACCEPT, join, u32, vsa

Attribute = tuple[int, bytes]


def read(*attributes: Attribute, log: MemoryLog | None = None) -> tuple[int | None, int | None]:
    """Return the rates of an Access-Accept, from and to the subscriber."""
    body = join(attributes)
    raw = bytes([ACCEPT, 1]) + (20 + len(body)).to_bytes(2, "big") + bytes(16) + body
    return chosen(parse_attributes(decode_reply(raw), (log or MemoryLog()).get()).get("rates", ()))


def mikrotik(value: str) -> Attribute:
    return vsa(14988, (8, value.encode()))


def cisco(value: str) -> Attribute:
    return vsa(9, (1, f"lcp:interface-config#1={value}".encode()))


LIMIT = "rate-limit {} {} 8000 8000 conform-action transmit exceed-action drop"


@pytest.mark.statement(371)
@pytest.mark.parametrize(
    "attributes, rates",
    [
        ([mikrotik("512k/10M")], (512, 10_000)),
        ([mikrotik("2M")], (2000, 2000)),
        ([mikrotik("128000/256000")], (128, 256)),
        ([mikrotik("1G/1g")], (1_000_000, 1_000_000)),
        ([mikrotik("0/5M")], (0, 5000)),
        ([mikrotik("64k/64k 256k/256k 128k/128k 10/10 5 32k/32k")], (64, 64)),
        ([mikrotik("100/1499")], (1, 1)),
        ([vsa(14122, (7, u32(1_000_000))), vsa(14122, (8, u32(8_000_000)))], (1000, 8000)),
        ([vsa(14122, (8, u32(8_000_000)))], (None, 8000)),
        ([vsa(2011, (2, u32(3_000_000)), (5, u32(30_000_000)))], (3000, 30_000)),
        ([vsa(529, (197, u32(64_000)), (255, u32(128_000)))], (64, 128)),
        ([vsa(529, (255, u32(0)))], (None, 0)),
        ([vsa(2011, (5, u32(0xFFFFFFFF)))], (None, 4_294_967)),
        ([cisco(LIMIT.format("output", 512_000))], (None, 512)),
        ([cisco(LIMIT.format("input", 64_000)), cisco(LIMIT.format("output", 512_000))], (64, 512)),
        ([cisco("rate-limit input access-group 101 64000 8000 8000")], (64, None)),
        ([cisco("service-policy input 64")], (None, None)),  # kbit/s, for the plugin autothrottle
        ([cisco("rate-limit sideways 64000")], (None, None)),
        ([], (None, None)),
    ],
)
def test_each_form_gives_its_rates(attributes: list[Attribute], rates: tuple[int | None, int | None]) -> None:
    assert read(*attributes) == rates


@pytest.mark.statement(371)
def test_of_several_the_first_vendor_of_the_table_counts_for_each_direction() -> None:
    ascend, huawei = vsa(529, (197, u32(1000)), (255, u32(2000))), vsa(2011, (2, u32(3000)))
    wispr = vsa(14122, (8, u32(4000)))
    assert read(ascend, huawei) == (3, 2)
    assert read(ascend, huawei, wispr) == (3, 4)
    assert read(ascend, huawei, wispr, mikrotik("5k/6k")) == (5, 6)
    assert read(mikrotik("5k/6k"), cisco("rate-limit output 7000")) == (5, 7)


@pytest.mark.statement(371)
@pytest.mark.parametrize("value", ["", " ", "fast", "1M/2M/3M", "-1", "1.5M", "1T", "1M/", "/1M", "1 M/2M x/"])
def test_nonsense_is_logged_and_limits_nothing(value: str) -> None:
    log = MemoryLog()
    rates = read(mikrotik(value) if value else vsa(14988, (8, b"\0")), log=log)
    if value != "1 M/2M x/":  # a rate, and bursts that are not read
        assert rates == (None, None)
        assert len(log.records("radius_value_ignored")) == 1


@given(value=st.binary(min_size=1, max_size=200))
def test_any_octets_are_a_rate_or_none(value: bytes) -> None:
    read(vsa(14988, (8, value)))
    read(vsa(9, (1, b"lcp:interface-config#1=" + value)))
