"""A profile for some LACs: which they are, and the variables that have another value for them.

    lac metro
     address 192.0.2.0/24,198.51.100.7
     host-name lac1.metro.example,lac2.metro.example
     set l2tp_secret "another secret"
     set radius_authtypes "chap"
    exit

A LAC must have one of the addresses and one of the host names that its profile names. If several profiles fit, the one
with the longest prefix counts, then one that names the host, then the first in the file. Any variable whose declaration
says `lac=True` may be set; the others are the whole server's. lac_config.py chooses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from l2tpns.config.value_types import Networks, Words
from l2tpns.runtime.text import quote

ADDRESS, HOST_NAME = "address", "host-name"
_NETWORKS, _NAMES = Networks(), Words()


@dataclass(frozen=True, slots=True)
class LacProfile:
    """One block `lac NAME` of the configuration."""

    name: str
    addresses: tuple[IPv4Network, ...] = ()
    host_names: tuple[str, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)  # by variable

    def rank(self, address: IPv4Address, host: str) -> tuple[int, bool] | None:
        """Return how well a LAC fits, more being better; None: not at all."""
        lengths = [network.prefixlen for network in self.addresses if address in network]
        if (self.addresses and not lengths) or (self.host_names and host not in self.host_names):
            return None
        return max(lengths, default=-1), bool(self.host_names)

    def with_words(self, word: str, text: str) -> LacProfile:
        """Return the profile with the addresses or host names of a line. Raises ValueError."""
        if word == ADDRESS:
            return replace(self, addresses=_NETWORKS.parse(text))
        return replace(self, host_names=_NAMES.parse(text))

    def lines(self, settings: Mapping[str, Any]) -> Iterator[str]:
        """Yield the lines of the block. `settings` are the declarations of the variables."""
        yield f"lac {self.name}"
        if self.addresses:
            yield f" {ADDRESS} {_NETWORKS.text(self.addresses)}"
        if self.host_names:
            yield f" {HOST_NAME} {quote(_NAMES.text(self.host_names))}"
        for name, value in self.values.items():
            yield f" {settings[name].line(value)}"
        yield "exit"
