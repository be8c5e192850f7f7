"""The rate that drops: what passes over time, after a pause, and at once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from l2tpns.dataplane.rate import MIN_BURST_OCTETS, Rate


def test_a_burst_passes_and_then_what_the_rate_allows() -> None:
    rate = Rate.of(8000, 200)  # 1,000,000 octets a second; 200,000 at once
    now, ready, passed = 100.0, 0.0, 0
    while (paid := rate.pay(ready, 1000, now)) is not None:
        ready, passed = paid, passed + 1
    assert passed in (199, 200)
    assert rate.pay(ready, 1000, now + 0.0011) is not None


def test_a_low_rate_has_room_for_three_full_packets() -> None:
    rate = Rate.of(8, 10)
    assert rate.burst == MIN_BURST_OCTETS / 1000
    ready = 0.0
    for _ in range(3):
        paid = rate.pay(ready, 1500, 50.0)
        assert paid is not None
        ready = paid


@given(
    kbits=st.integers(2, 10_000_000),
    packets=st.lists(st.tuples(st.floats(0, 0.01), st.integers(20, 1500)), max_size=200),
)
def test_no_more_passes_than_the_rate_and_one_burst(kbits: int, packets: list[tuple[float, int]]) -> None:
    rate = Rate.of(kbits, 200)
    now = begun = 1000.0
    ready, passed = 0.0, 0
    for pause, octets in packets:
        now += pause
        paid = rate.pay(ready, octets, now)
        if paid is not None:
            ready, passed = paid, passed + octets
    assert passed * rate.cost <= now - begun + rate.burst + 1e-6


def test_costs_and_bursts_fit_the_kernel_s_words() -> None:
    for kbits in (1, 2, 64, 10_000_000):
        rate = Rate.of(kbits, 2000)
        assert 0 < rate.kernel_cost <= 0xFFFFFFFF and 0 < rate.kernel_burst <= 0xFFFFFFFF
    assert Rate.of(8_000_000, 200).kernel_cost == 1024  # one nanosecond an octet
