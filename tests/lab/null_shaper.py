"""Provide a Shaper that does not change the kernel."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from ipaddress import IPv4Network
from typing import Any

from l2tpns.system.shaping import FIRST, LAST, Shaped, ShapingError


class NullShaper:
    """Record what the Shaper would do. `buckets` maps each bucket's number to what it shapes."""

    def __init__(self) -> None:
        self.buckets: dict[int, Shaped] = {}
        self.refusing = ""  # words
        self.moved: tuple[Any, ...] = ()

    def start(self, needed: bool) -> None:
        self.buckets.clear()

    def shape(self, shaped: Shaped) -> int:
        if self.refusing:
            raise ShapingError(self.refusing)
        bucket = next(bucket for bucket in range(FIRST, LAST + 1) if bucket not in self.buckets)
        self.buckets[bucket] = shaped
        return bucket

    def change(self, bucket: int, rate: int) -> None:
        if self.refusing:
            raise ShapingError(self.refusing)
        self.buckets[bucket] = replace(self.buckets[bucket], rate=rate)

    def release(self, bucket: int, networks: Iterable[IPv4Network]) -> None:
        del self.buckets[bucket]

    def move(self, device: int, rates: Sequence[tuple[int, int]]) -> None:
        self.moved = (device, *rates)

    def restore_queues(self) -> list[str]:
        return []

    def stop(self) -> None:
        self.buckets.clear()
