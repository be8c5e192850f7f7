"""The IP Control Protocol (RFC 1332) with name servers (RFC 1877), for both ends of a link.

IP-Addresses (option 1, deprecated) and IP-Compression-Protocol (Van Jacobson) are rejected. Does not choose addresses:
the policy says which one the peer gets, or that it may choose.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address

from l2tpns.proto.ppp.automaton import State, Timers
from l2tpns.proto.ppp.frame import Protocol
from l2tpns.proto.ppp.negotiation import ControlProtocol, Notice, Random
from l2tpns.proto.ppp.options import Option

UNSPECIFIED = IPv4Address(0)  # RFC 1332 3.3: a request for an address
ADDRESS_SIZE = 4


class IpcpOption(IntEnum):
    IP_ADDRESSES = 1
    IP_COMPRESSION = 2
    IP_ADDRESS = 3
    PRIMARY_DNS = 129  # RFC 1877 1.1 to 1.4
    PRIMARY_NBNS = 130
    SECONDARY_DNS = 131
    SECONDARY_NBNS = 132


DNS_OPTIONS = (IpcpOption.PRIMARY_DNS, IpcpOption.SECONDARY_DNS)


@dataclass(frozen=True, slots=True)
class IpcpPolicy:
    """Which addresses are acceptable.

    `local` is the address of this side; 0.0.0.0: the one that the peer gives; None: do not negotiate one. `peer` is the
    peer's address; None: any that it asks for. With `peer_may_choose` it is offered only to a peer that asks for one.
    """

    local: IPv4Address | None
    peer: IPv4Address | None
    dns: tuple[IPv4Address, ...] = ()
    peer_may_choose: bool = False
    ask_dns: bool = False


@dataclass(frozen=True, slots=True)
class IpcpRecord:
    """The state of an opened IPCP that a restart restores."""

    local: IPv4Address | None
    peer: IPv4Address | None
    identifier: int = 0


class Ipcp(ControlProtocol):
    __slots__ = ("_dns", "local_address", "peer_address", "policy")

    protocol = Protocol.IPCP

    def __init__(
        self,
        send: Callable[[bytes], None],
        notify: Callable[[Notice], None],
        random: Random,
        timers: Timers,
        policy: IpcpPolicy,
    ) -> None:
        super().__init__(send, notify, random, timers)
        self.policy = policy
        self.local_address = policy.local
        self.peer_address = policy.peer
        self._dns: tuple[IPv4Address, ...] = ()  # as asked for: primary, secondary

    @property
    def address_disputed(self) -> bool:
        """True if there was no agreement on the peer's address."""
        return self.impasse is not None and IpcpOption.IP_ADDRESS in self.impasse.types

    def record(self) -> IpcpRecord:
        return IpcpRecord(self.local_address, self.peer_address, self._last_identifier)

    def restore(self, record: IpcpRecord) -> None:
        """Continue as Opened, without a packet or a notification."""
        self.local_address, self.peer_address = record.local, record.peer
        self._last_identifier = record.identifier
        self.restart_count = self.timers.max_configure
        self.state = State.OPENED

    # Our options

    def _restart(self) -> None:
        self.local_address = self.policy.local
        self._dns = (UNSPECIFIED, UNSPECIFIED) if self.policy.ask_dns else ()

    def _wanted(self) -> list[Option]:
        options = []
        if self.local_address is not None:
            options.append(Option(IpcpOption.IP_ADDRESS, self.local_address.packed))
        for option_type, address in zip(DNS_OPTIONS, self._dns, strict=False):
            options.append(Option(option_type, address.packed))
        return options

    def _take_nak(self, option: Option) -> None:
        if len(option.value) != ADDRESS_SIZE:
            return
        address = IPv4Address(option.value)
        if option.type == IpcpOption.IP_ADDRESS:
            # A server keeps its own address. The peer accepts it in the end, or rejects the option, which is optional
            # (RFC 1332 3.3).
            if self.policy.local == UNSPECIFIED:
                self.local_address = address
        else:
            primary, secondary = self._dns
            self._dns = (address, secondary) if option.type == IpcpOption.PRIMARY_DNS else (primary, address)

    def _take_reject(self, option_type: int) -> None:
        super()._take_reject(option_type)
        if option_type == IpcpOption.IP_ADDRESS and self.policy.local == UNSPECIFIED:
            self.local_address = None

    # The peer's options

    def _consider(self, option: Option) -> Option | None:
        match option.type:
            case IpcpOption.IP_ADDRESS:
                return self._consider_address(option)
            case IpcpOption.PRIMARY_DNS | IpcpOption.SECONDARY_DNS:
                # RFC 1877 1.1: the peer gets the configured server, whatever it asks for; without one, a Reject.
                index = DNS_OPTIONS.index(IpcpOption(option.type))
                if index < len(self.policy.dns):
                    return Option(option.type, self.policy.dns[index].packed)
        return None

    def _consider_address(self, option: Option) -> Option | None:
        policy = self.policy
        free = policy.peer_may_choose or policy.peer is None
        if free and len(option.value) == ADDRESS_SIZE and _may_be_a_host(IPv4Address(option.value)):
            return option
        return None if policy.peer is None else Option(IpcpOption.IP_ADDRESS, policy.peer.packed)

    def _needed(self) -> Collection[int]:
        """IPCP does not open without the peer's address if the policy has one or the peer may choose it."""
        known = self.policy.peer is not None or self.policy.peer_may_choose
        return (IpcpOption.IP_ADDRESS,) if known else ()

    def _is_wish(self, option: Option) -> bool:
        return option.value != UNSPECIFIED.packed  # a request for an address

    def _missing(self, options: list[Option]) -> list[Option]:
        """Return the address option that the peer left out, for the Nak; 0.0.0.0 lets it choose (RFC 1332 3.3)."""
        if not self._needed() or any(option.type == IpcpOption.IP_ADDRESS for option in options):
            return []
        return [Option(IpcpOption.IP_ADDRESS, (self.policy.peer or UNSPECIFIED).packed)]

    def _accept(self, options: list[Option]) -> None:
        named = [IPv4Address(option.value) for option in options if option.type == IpcpOption.IP_ADDRESS]
        self.peer_address = named[-1] if named else self.policy.peer


def _may_be_a_host(address: IPv4Address) -> bool:
    """Return True if the address can belong to one host."""
    return not (
        address.packed[0] == 0  # "this network", RFC 1122 3.2.1.3
        or address.is_loopback
        or address.is_multicast
        or address.is_reserved
    )
