"""Shape packets to throttled sessions in classes of HTB, the root queue of the tun device (manual: Throttling).

A throttled session has a class such as `1:870`. Classes are never deleted, since that costs the kernel a walk over all
of them: the next session gets the class, with another rate. An ipset maps destinations to classes, one rule in chain
`throttle` of table mangle writes the class into the upper half of the packet's mark, and one filter of HTB reads it
there. So a packet and a change cost the same with one throttled session as with ten thousand
(docs/decisions/0010-throttling-by-set-and-mark.md). The messages to the kernel are tc_messages.py's.

Packets from subscribers are not shaped but policed: dataplane/policer.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from errno import ENODEV
from ipaddress import IPv4Network
from typing import Protocol

import gevent

from l2tpns.errors import L2tpnsError
from l2tpns.runtime.log import Logger
from l2tpns.runtime.supervisor import Supervisor
from l2tpns.system.firewall import Firewall
from l2tpns.system.ipset import IpSets
from l2tpns.system.netlink_socket import NLM_F_DUMP, NetlinkError
from l2tpns.system.rtnetlink import Netlink
from l2tpns.system.rule_watch import RULE_CHECK_INTERVAL, RuleWatch
from l2tpns.system.tc_messages import (
    FILTER,
    MARK_SHIFT,
    NLM_F_CREATE,
    NLM_F_REPLACE,
    ROOT,
    ROOT_MASK,
    RTM_DELTCLASS,
    RTM_GETQDISC,
    RTM_GETTCLASS,
    RTM_GETTFILTER,
    RTM_NEWQDISC,
    RTM_NEWTCLASS,
    RTM_NEWTFILTER,
    TC_H_ROOT,
    TcMessage,
    class_message,
    filter_message,
    queue_message,
    root_message,
    tc_message,
)

SET = "l2tpns_throttle"
MAX_SET = 1 << 20  # members
TABLE, HOOK, ENTRY, CHAIN = "mangle", "PREROUTING", "l2tpns", "throttle"  # as the manual names them

MARK_MASK = 0xFFFF0000  # the lower half of the mark is the operator's
FIRST, LAST = 0x10, 0xFFEF  # classes; higher numbers are handles of other queues
REMOVED_AT_ONCE = 100  # classes that an earlier process has left
CHUNK = 20  # classes restored between two yields
IDLE_RATE = 1_000_000  # kbit/s of a class without a session: packets left in it go out at once


class ShapingError(L2tpnsError):
    """The kernel has refused. The text is for the operator."""


@dataclass(frozen=True, slots=True)
class Shaped:
    """Networks that together have one rate, in kbit/s."""

    rate: int
    networks: tuple[IPv4Network, ...]


class Shaper(Protocol):
    """What throttling needs of the kernel. Every method raises ShapingError."""

    def start(self, needed: bool) -> None:
        """Remove what an earlier process left. Install everything now if it will be needed."""

    def shape(self, shaped: Shaped) -> int:
        """Shape packets to these networks. Return the bucket, a number."""

    def change(self, bucket: int, rate: int) -> None:
        """Change the rate from the next packet on. Packets that wait are kept."""

    def release(self, bucket: int, networks: Iterable[IPv4Network]) -> None:
        """Stop shaping, and free the bucket for another session."""

    def move(self, device: int, rates: Sequence[tuple[int, int]]) -> None:
        """Use a new device, after the old one was deleted. `rates` are the buckets in use and their rates."""

    def restore_queues(self) -> list[str]:
        """Restore missing queues. Return a description of each that was missing."""

    def stop(self) -> None:
        """Remove all rules and sets."""


def handle(bucket: int) -> str:
    """Return the class of a bucket as tc writes it."""
    return f"1:{bucket:x}"


class KernelShaper:
    """A Shaper for one device, without queues of other programs."""

    def __init__(
        self,
        netlink: Netlink,
        device: int,
        sets: IpSets,
        firewall: Firewall,
        log: Logger,
        supervisor: Supervisor | None = None,
        check_interval: float = RULE_CHECK_INTERVAL,
    ) -> None:
        self._netlink = netlink
        self._device = device
        self._sets = sets
        self._firewall = firewall
        named = firewall.instance
        self._set, self._entry, self._chain = named.name(SET), named.name(ENTRY), named.name(CHAIN)
        self._jumps = ((HOOK, self._entry), (self._entry, self._chain))
        self._rule = f"-j SET --map-set {self._set} dst --map-mark"
        self._log = log
        self._queues = self._prepared = False
        self._watch = RuleWatch(supervisor or Supervisor(log), "throttle watcher", self._check, check_interval)
        self._made = FIRST  # the next class that was never made
        self._free: list[int] = []
        self._rates: dict[int, int] = {}  # of all classes made, idle ones included
        self._holders: dict[IPv4Network, list[int]] = {}  # buckets of each network, the newest last

    def start(self, needed: bool) -> None:
        with _as_shaping_errors():
            try:
                self._adopt_queues()
                self._install_queues()  # now, before there is traffic: exchanging a root queue loses packets
            except NetlinkError:
                if needed:
                    raise
            if needed:
                self.prepare()
            else:
                self._clean()

    def shape(self, shaped: Shaped) -> int:
        with _as_shaping_errors():
            if not self._prepared:
                self._firewall.load()
                self.prepare()
            self._install_queues()
            (bucket,) = self._take([shaped.rate])
            try:
                self._claim(bucket, shaped.networks)
            except L2tpnsError:
                self.release(bucket, shaped.networks)
                raise
        return bucket

    def change(self, bucket: int, rate: int) -> None:
        with _as_shaping_errors():
            self._set_rates([(bucket, rate)])

    def release(self, bucket: int, networks: Iterable[IPv4Network]) -> None:
        with _as_shaping_errors():
            try:
                self._disclaim(bucket, networks)
            finally:
                self._free.append(bucket)
            try:
                self._set_rates([(bucket, IDLE_RATE)])
            except NetlinkError as error:
                if error.code != ENODEV:  # the device was deleted, and the classes with it
                    raise

    def move(self, device: int, rates: Sequence[tuple[int, int]]) -> None:
        with _as_shaping_errors():
            self._device, self._queues = device, False
            self._install_queues()
            if rates:
                self._set_rates(rates)

    def restore_queues(self) -> list[str]:
        """Restore HTB, its filter and its classes. Return what was missing, in words.

        A root queue that another program has set stays while no session is throttled. May yield.
        """
        with _as_shaping_errors():
            if not self._queues:
                return []
            root, classes = self._queues_there()
            used = {bucket: rate for bucket, rate in self._rates.items() if bucket not in self._free}
            missing = [bucket for bucket in used if ROOT | bucket not in classes]
            lost = ["filter of throttling"] * (root == ROOT and not self._filter_there())
            lost += ["qdisc htb"] * (root != ROOT)
            lost += [f"{len(missing)} classes"] * bool(missing)
            if not lost:
                return []
            self._queues = root == ROOT
            if root not in (ROOT, 0) and not used:
                return []
            self._install_queues()
            self._install_filter()
            for start in range(0, len(missing), CHUNK):
                self._set_rates([(bucket, used[bucket]) for bucket in missing[start : start + CHUNK]])
                gevent.sleep(0.001)
        return lost

    def _queues_there(self) -> tuple[int, set[int]]:
        """Return the handle of the device's root queue, and the classes of HTB."""
        root = 0
        for queue in self._netlink.query(RTM_GETQDISC, tc_message(self._device, "", 0, 0), TcMessage, NLM_F_DUMP):
            if queue["index"] == self._device and queue["parent"] == TC_H_ROOT:
                root = queue["handle"]
        if root != ROOT:
            return root, set()
        there = self._netlink.query(RTM_GETTCLASS, tc_message(self._device, "", 0, 0), TcMessage, NLM_F_DUMP)
        return root, {each["handle"] for each in there}

    def _filter_there(self) -> bool:
        wanted = tc_message(self._device, "", ROOT, 0)
        there = self._netlink.query(RTM_GETTFILTER, wanted, TcMessage, NLM_F_DUMP)
        return any(each["handle"] == FILTER for each in there)

    def stop(self) -> None:
        """Remove rules and sets; the kernel removes the classes with the device."""
        with _as_shaping_errors():
            self._clean()

    # Classes

    def _take(self, rates: Sequence[int]) -> list[int]:
        """Return a class for each rate: idle ones first, then new ones."""
        buckets = [self._free.pop() for _ in range(min(len(rates), len(self._free)))]
        new = range(self._made, self._made + len(rates) - len(buckets))
        try:
            if new.stop - 1 > LAST:
                raise ShapingError("there are no more classes")
            buckets += new
            self._made = new.stop  # now: another greenlet may run while the kernel is asked
            self._set_rates(list(zip(buckets, rates, strict=True)))
        except L2tpnsError:
            self._free.extend(buckets)
            raise
        return buckets

    def _set_rates(self, rates: Sequence[tuple[int, int]]) -> None:
        """Set classes and their queues, and create missing ones."""
        classes = [class_message(self._device, bucket, rate) for bucket, rate in rates]
        queues = [queue_message(self._device, bucket, rate) for bucket, rate in rates]
        self._netlink.request(RTM_NEWTCLASS, classes, NLM_F_CREATE)
        self._netlink.request(RTM_NEWQDISC, queues, NLM_F_CREATE | NLM_F_REPLACE)
        self._rates.update(rates)

    # The set. Two sessions may have the same framed route: the later one gets the packets, as in the data path.

    def _claim(self, bucket: int, networks: Iterable[IPv4Network]) -> None:
        for network in networks:
            self._sets.add(self._set, network, bucket << MARK_SHIFT, MARK_MASK)
            self._holders.setdefault(network, []).append(bucket)

    def _disclaim(self, bucket: int, networks: Iterable[IPv4Network]) -> None:
        for network in networks:
            holders = self._holders.get(network, [])
            if bucket not in holders:
                continue
            holders.remove(bucket)
            if holders:
                self._sets.add(self._set, network, holders[-1] << MARK_SHIFT, MARK_MASK)
            else:
                del self._holders[network]
                self._sets.remove(self._set, network)

    # Set, rules and queues

    def prepare(self) -> None:
        """Install set and rules. The set is emptied, for members of an earlier process name classes that are gone."""
        if self._prepared:
            return
        self._install_queues()
        self._install_rules()
        self._sets.fill(self._set, {})
        self._prepared = True
        self._watch.start()

    def _repair(self) -> bool:
        """Restore what another program has removed; commands of the manual do. Return True if anything was missing."""
        with _as_shaping_errors():
            if not self._prepared:
                return False
            complete = not self._install_rules()
            if complete and self._sets.count(self._set) == len(self._holders):
                return False
            marks = {network: buckets[-1] << MARK_SHIFT for network, buckets in self._holders.items()}
            added, removed = self._sets.fill(self._set, marks, MARK_MASK)
            return not complete or bool(added or removed)

    def _check(self) -> None:
        try:
            if self._repair():
                self._log.warning(
                    "throttle_healed",
                    why="another program removed rules from table mangle or members of the set",
                )
        except ShapingError as error:
            self._log.error("throttling_impaired", why=str(error))

    def _install_rules(self) -> bool:
        """Ensure the set, the chains and our rules. Return True if a rule was missing."""
        self._sets.ensure(self._set, skbinfo=True, maxelem=MAX_SET)
        with self._firewall.change(TABLE) as (table,):
            for name in (self._entry, self._chain):
                table.chain(name)
            for chain, to in self._jumps:
                if not table.leads(chain, to):  # a rule of the operator's will do
                    table.ensure(chain, f"-j {to}")
            table.ensure(self._chain, self._rule)
            return table.changed

    def _install_queues(self) -> None:
        if not self._queues:
            self._netlink.request(RTM_NEWQDISC, [root_message(self._device)], NLM_F_CREATE | NLM_F_REPLACE)
            self._install_filter()
            self._queues = True

    def _adopt_queues(self) -> None:
        """Go on with the root queue of an earlier process, but not with its classes, which have no sessions."""
        root, classes = self._queues_there()
        if root != ROOT:
            return
        ours = [tc_message(self._device, "", 0, handle) for handle in classes if handle & ROOT_MASK == ROOT]
        for start in range(0, len(ours), REMOVED_AT_ONCE):
            self._netlink.request(RTM_DELTCLASS, ours[start : start + REMOVED_AT_ONCE])
        self._install_filter()
        self._queues = True

    def _install_filter(self) -> None:
        self._netlink.request(RTM_NEWTFILTER, [filter_message(self._device)], NLM_F_CREATE | NLM_F_REPLACE)

    def _clean(self) -> None:
        """Remove what is ours, also of an earlier process. Chains of the operator lose only our rules."""
        self._prepared = False
        self._watch.stop(block=False)
        if not self._sets.exists(self._set):
            return  # the set is made first and destroyed last
        if TABLE in self._firewall.loaded():
            with self._firewall.change(TABLE) as (table,):
                table.remove(self._chain, self._rule)
                for chain, to in self._jumps:
                    if table.has_chain(to):
                        table.remove(chain, f"-j {to}")
                for name in (self._chain, self._entry):
                    table.remove_chain(name)
        self._sets.destroy(self._set)


@contextmanager
def _as_shaping_errors() -> Iterator[None]:
    """Raise ShapingError for each refusal of the kernel."""
    try:
        yield
    except ShapingError:
        raise
    except NetlinkError as error:
        raise ShapingError(f"the kernel's packet scheduler: {error}") from error
    except L2tpnsError as error:
        raise ShapingError(str(error)) from error
