"""Shaping: what goes to throttled sessions through the tun device waits in classes of HTB (manual: Throttling).

HTB is the device's root queue. A throttled session has a class, `1:870` and the like, which is never deleted, since
that costs the kernel a walk over all classes: the next session gets it, with another rate. An ipset says
which destinations belong to which class, one rule in chain `throttle` of table mangle writes the class into the
upper half of the packet's mark, and one filter of HTB reads it there: the cost of a packet and of a change is the same
with one throttled session and with ten thousand (docs/decisions/0010-throttling-by-set-and-mark.md).

What comes from subscribers is not shaped here: see dataplane/policer.py.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from errno import ENODEV
from ipaddress import IPv4Network
from typing import Any, Protocol

import gevent
from pyroute2.netlink import nlmsg
from pyroute2.netlink.rtnl.tcmsg import tcmsg

from l2tpns.errors import L2tpnsError
from l2tpns.runtime.log import Logger
from l2tpns.runtime.supervisor import Part, Supervisor
from l2tpns.system.firewall import Firewall
from l2tpns.system.ipset import IpSets
from l2tpns.system.netlink_socket import NLM_F_DUMP, NetlinkError
from l2tpns.system.nfnetlink import attribute
from l2tpns.system.rtnetlink import Message, Netlink

SET = "l2tpns_throttle"
LARGEST_SET = 1 << 20
TABLE, HOOK, ENTRY, CHAIN = "mangle", "PREROUTING", "l2tpns", "throttle"  # as the manual has them made
JUMPS = ((HOOK, ENTRY), (ENTRY, CHAIN))
RULE = f"-j SET --map-set {SET} dst --map-mark"

MARK_SHIFT, MARK_MASK = 16, 0xFFFF0000  # the lower half of the mark is the operator's
FIRST, LAST = 0x10, 0xFFEF  # classes; the numbers above name other things, as handles of queues
FILTER = 1  # handle of its only filter
CHUNK = 20  # classes made again before others get their turn
ROOT = 1 << 16  # handle of HTB; class n is 1:n, and the queue of its packets n:

# A class may send so much at once after a pause; a timer of the kernel's that comes late must not cost rate.
BURST_OCTETS, BURST_SECONDS = 1600, 0.1
# And so much may wait for it. 5,200 octets are three full packets and some small ones: 0.65 s at 64 kbit/s, of which
# TCP still makes the full rate; with two it does not. From 208 kbit/s on 0.2 s, for TCP over long ways.
QUEUE_OCTETS, QUEUE_SECONDS = 5200, 0.2
LARGEST_PACKET = 1600  # the device's MTU is below; what is larger was joined by the kernel (GRO), and is cut again
QUANTUM = 1600  # octets of a class in its turn, where more than one may send
IDLE_RATE = 1_000_000  # kbit/s of a class that nobody has: what is left in it goes out at once
CHECK = 60.0  # seconds between two looks whether our rules are still there
DIRECT_QUEUE = 2000  # packets of everybody who is not throttled: as long as the device's own queue

_RTM_NEWQDISC, _RTM_NEWTCLASS, _RTM_NEWTFILTER = 36, 40, 44
_RTM_GETQDISC, _RTM_GETTCLASS, _RTM_GETTFILTER = 38, 42, 46
_NLM_F_REPLACE, _NLM_F_CREATE = 0x100, 0x400
_TC_H_ROOT = 0xFFFFFFFF
_ETH_P_ALL = 0x0300  # in network order
_TICKS = 1_000_000_000 // 64  # of the kernel's packet scheduler, a second
_LINKLAYER = 1  # Ethernet: has the kernel compute, and not look up in tables of ours
_NO_LIMIT = 50_000_000_000  # octets a second: the queue below HTB never holds a packet back

# linux/pkt_sched.h: tc_ratespec (cell_log, linklayer, overhead, cell_align, mpu, rate), tc_htb_opt, tc_htb_glob, ...
_RATE = "BBHhHI"
_HTB_CLASS = struct.Struct(f"={_RATE}{_RATE}IIIII")  # rate, ceil, buffer, cbuffer, quantum, level, prio
_HTB_ROOT = struct.Struct("=IIIII")  # version, rate2quantum, default class, debug, direct packets
_TBF = struct.Struct(f"={_RATE}{_RATE}III")  # rate, peak rate, limit, buffer, mtu
_U16, _U32, _U64 = struct.Struct("=H"), struct.Struct("=I"), struct.Struct("=Q")
_TCA_HTB_PARMS, _TCA_HTB_INIT, _TCA_HTB_DIRECT_QLEN = 1, 2, 5
_TCA_TBF_PARMS, _TCA_TBF_RATE64, _TCA_TBF_BURST = 1, 4, 6
_TCA_BPF_OPS_LEN, _TCA_BPF_OPS = 4, 5

# Classic BPF (code, jump if true, jump if false, operand): class 1:n for mark n << 16, no answer for 0.
_INSTRUCTION = struct.Struct("=HBBI")
_PROGRAM = (
    (0x20, 0, 0, 0xFFFFF014),  # load the mark (SKF_AD_OFF + SKF_AD_MARK)
    (0x74, 0, 0, MARK_SHIFT),  # shift it right
    (0x15, 2, 0, 0),  # nothing there: to the last line
    (0x44, 0, 0, ROOT),
    (0x16, 0, 0, 0),  # return it
    (0x06, 0, 0, 0),  # return 0: no class
)


class ShapingError(L2tpnsError):
    """The kernel will not; in words for the operator."""


@dataclass(frozen=True, slots=True)
class Shaped:
    """What goes to these networks has this rate, kbit/s, together."""

    rate: int
    networks: tuple[IPv4Network, ...]


class Shaper(Protocol):
    """What throttling asks of the kernel. Everything raises ShapingError."""

    def start(self, needed: bool) -> None:
        """Remove what an earlier process left; have everything ready if it will be needed."""

    def shape(self, shaped: Shaped) -> int:
        """Have this; its bucket."""

    def change(self, bucket: int, rate: int) -> None:
        """Another rate, from the next packet on; what waits is kept."""

    def release(self, bucket: int, networks: Iterable[IPv4Network]) -> None:
        """No longer; the bucket is the next one's."""

    def move(self, device: int, rates: Sequence[tuple[int, int]]) -> None:
        """The device was deleted, and this is the new one: give these buckets their rates there."""

    def restore_queues(self) -> list[str]:
        """Put back what is gone of the queues. Return it in words."""

    def stop(self) -> None:
        """Leave nothing behind."""


class NullShaper:
    """A Shaper that remembers: `buckets` is what has which rate."""

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


def handle(bucket: int) -> str:
    """As tc writes it."""
    return f"1:{bucket:x}"


class KernelShaper:
    """A Shaper for one device, which must be new: nobody but us has given it queues."""

    def __init__(
        self,
        netlink: Netlink,
        device: int,
        sets: IpSets,
        firewall: Firewall,
        log: Logger,
        supervisor: Supervisor | None = None,
    ) -> None:
        self._netlink = netlink
        self._device = device
        self._sets = sets
        self._firewall = firewall
        self._log = log
        self._queues = self._prepared = False
        self._supervisor = supervisor or Supervisor(log)
        self._watcher: Part | None = None
        self._made = FIRST  # the next class that was never made
        self._free: list[int] = []
        self._rates: dict[int, int] = {}  # of the classes made, the idle ones too
        self._holders: dict[IPv4Network, list[int]] = {}  # whose packets go to this network, the newest last

    def start(self, needed: bool) -> None:
        with _in_words():
            try:
                self._install_queues()  # now that there is no traffic: to exchange a root queue costs packets
            except NetlinkError:
                if needed:
                    raise
            if needed:
                self.prepare()
            else:
                self._clean()

    def shape(self, shaped: Shaped) -> int:
        with _in_words():
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
        with _in_words():
            self._set_rates([(bucket, rate)])

    def release(self, bucket: int, networks: Iterable[IPv4Network]) -> None:
        with _in_words():
            try:
                self._disclaim(bucket, networks)
            finally:
                self._free.append(bucket)
            try:
                self._set_rates([(bucket, IDLE_RATE)])
            except NetlinkError as error:
                if error.code != ENODEV:  # the device has gone, and the classes with it
                    raise

    def move(self, device: int, rates: Sequence[tuple[int, int]]) -> None:
        with _in_words():
            self._device, self._queues = device, False
            self._install_queues()
            if rates:
                self._set_rates(rates)

    def restore_queues(self) -> list[str]:
        """Put back HTB, its filter and its classes if they are gone. Return what was missing, in words. A root queue
        that another program has chosen stays while no session is throttled."""
        with _in_words():
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
        """The handle of the device's root queue, and the classes of HTB."""
        root = 0
        for queue in self._netlink.query(_RTM_GETQDISC, _message(self._device, "", 0, 0), _TcMessage, NLM_F_DUMP):
            if queue["index"] == self._device and queue["parent"] == _TC_H_ROOT:
                root = queue["handle"]
        if root != ROOT:
            return root, set()
        there = self._netlink.query(_RTM_GETTCLASS, _message(self._device, "", 0, 0), _TcMessage, NLM_F_DUMP)
        return root, {each["handle"] for each in there}

    def _filter_there(self) -> bool:
        wanted = _message(self._device, "", ROOT, 0)
        there = self._netlink.query(_RTM_GETTFILTER, wanted, _TcMessage, NLM_F_DUMP)
        return any(each["handle"] == FILTER for each in there)

    def stop(self) -> None:
        """The classes go with the device."""
        with _in_words():
            self._clean()

    # Classes

    def _take(self, rates: Sequence[int]) -> list[int]:
        """A class for each: of those that nobody has, or new."""
        buckets = [self._free.pop() for _ in range(min(len(rates), len(self._free)))]
        new = range(self._made, self._made + len(rates) - len(buckets))
        try:
            if new.stop - 1 > LAST:
                raise ShapingError("there are no more classes")
            buckets += new
            self._made = new.stop  # now: somebody else may get a turn while the kernel is asked
            self._set_rates(list(zip(buckets, rates, strict=True)))
        except L2tpnsError:
            self._free.extend(buckets)
            raise
        return buckets

    def _set_rates(self, rates: Sequence[tuple[int, int]]) -> None:
        """Classes and their queues; those that are missing are made."""
        classes = [_class_message(self._device, bucket, rate) for bucket, rate in rates]
        queues = [_queue_message(self._device, bucket, rate) for bucket, rate in rates]
        self._netlink.request(_RTM_NEWTCLASS, classes, _NLM_F_CREATE)
        self._netlink.request(_RTM_NEWQDISC, queues, _NLM_F_CREATE | _NLM_F_REPLACE)
        self._rates.update(rates)

    # The set. Two sessions may bring the same framed route: the later one has it, as in the data path.

    def _claim(self, bucket: int, networks: Iterable[IPv4Network]) -> None:
        for network in networks:
            self._sets.add(SET, network, bucket << MARK_SHIFT, MARK_MASK)
            self._holders.setdefault(network, []).append(bucket)

    def _disclaim(self, bucket: int, networks: Iterable[IPv4Network]) -> None:
        for network in networks:
            holders = self._holders.get(network, [])
            if bucket not in holders:
                continue
            holders.remove(bucket)
            if holders:
                self._sets.add(SET, network, holders[-1] << MARK_SHIFT, MARK_MASK)
            else:
                del self._holders[network]
                self._sets.remove(SET, network)

    # What is there once

    def prepare(self) -> None:
        """Set and rule. The set is emptied: what an earlier process left in it means classes that are gone."""
        if self._prepared:
            return
        self._install_queues()
        self._install_rules()
        self._sets.fill(SET, {})
        self._prepared = True
        self._watcher = self._supervisor.spawn("throttle watcher", self._watch)

    def heal(self) -> bool:
        """Put back what somebody has removed, as the manual's own commands do; whether there was anything."""
        with _in_words():
            if not self._prepared:
                return False
            complete = not self._install_rules()
            if complete and self._sets.count(SET) == len(self._holders):
                return False
            marks = {network: buckets[-1] << MARK_SHIFT for network, buckets in self._holders.items()}
            added, removed = self._sets.fill(SET, marks, MARK_MASK)
            return not complete or bool(added or removed)

    def _watch(self) -> None:
        while True:
            gevent.sleep(CHECK)
            try:
                if self.heal():
                    self._log.warning(
                        "throttle_healed",
                        why="another program had removed our rules from table mangle, or members of the set",
                    )
            except ShapingError as error:
                self._log.error("throttling_impaired", why=str(error))

    def _install_rules(self) -> bool:
        """Have the set, the chains and our rules; whether a rule was missing."""
        self._sets.ensure(SET, skbinfo=True, maxelem=LARGEST_SET)
        with self._firewall.change(TABLE) as (table,):
            for name in (ENTRY, CHAIN):
                table.chain(name)
            for chain, to in JUMPS:
                if not table.leads(chain, to):  # the operator's will do
                    table.ensure(chain, f"-j {to}")
            table.ensure(CHAIN, RULE)
            return table.changed

    def _install_queues(self) -> None:
        if not self._queues:
            self._netlink.request(_RTM_NEWQDISC, [_root_message(self._device)], _NLM_F_CREATE | _NLM_F_REPLACE)
            self._install_filter()
            self._queues = True

    def _install_filter(self) -> None:
        self._netlink.request(_RTM_NEWTFILTER, [_filter_message(self._device)], _NLM_F_CREATE | _NLM_F_REPLACE)

    def _clean(self) -> None:
        """Remove what is ours, also that of an earlier process; of the operator's chains only our rules in them."""
        self._prepared = False
        if self._watcher is not None:
            self._watcher.stop(block=False)
            self._watcher = None
        if not self._sets.exists(SET):
            return  # the first to come and the last to go
        if TABLE in self._firewall.loaded():
            with self._firewall.change(TABLE) as (table,):
                table.remove(CHAIN, RULE)
                for chain, to in JUMPS:
                    if table.has_chain(to):
                        table.remove(chain, f"-j {to}")
                for name in (CHAIN, ENTRY):
                    table.remove_chain(name)
        self._sets.destroy(SET)


@contextmanager
def _in_words() -> Iterator[None]:
    try:
        yield
    except ShapingError:
        raise
    except NetlinkError as error:
        raise ShapingError(f"the kernel's packet scheduler: {error}") from error
    except L2tpnsError as error:
        raise ShapingError(str(error)) from error


# Messages


class _TcMessage(nlmsg):  # type: ignore[misc]
    """pyroute2's own would compute, for each class, tables that the kernel does not read, and knows no cls_bpf."""

    prefix = "TCA_"
    fields = tcmsg.fields
    nla_map = (("TCA_UNSPEC", "none"), ("TCA_KIND", "asciiz"), ("TCA_OPTIONS", "cdata"))


def _message(device: int, kind: str, parent: int, handle: int, *options: bytes) -> Message:
    message = _TcMessage()
    message["index"] = device
    message["parent"] = parent
    message["handle"] = handle
    if kind:
        message["attrs"] = [("TCA_KIND", kind), ("TCA_OPTIONS", b"".join(options))]
    return message


def _root_message(device: int) -> Message:
    """HTB; who has no class goes directly."""
    init = attribute(_TCA_HTB_INIT, _HTB_ROOT.pack(3, 10, 0, 0, 0))
    return _message(device, "htb", _TC_H_ROOT, ROOT, init, attribute(_TCA_HTB_DIRECT_QLEN, _U32.pack(DIRECT_QUEUE)))


def _filter_message(device: int) -> Message:
    program = b"".join(_INSTRUCTION.pack(*each) for each in _PROGRAM)
    count = attribute(_TCA_BPF_OPS_LEN, _U16.pack(len(_PROGRAM)))
    message = _message(device, "bpf", ROOT, FILTER, count, attribute(_TCA_BPF_OPS, program))
    message["info"] = 1 << 16 | _ETH_P_ALL  # its place among filters, and for which packets
    return message


def _class_message(device: int, bucket: int, rate: int) -> Message:
    octets = _octets(rate)
    burst = max(BURST_OCTETS, int(octets * BURST_SECONDS))
    ticks = burst * _TICKS // octets
    spec = (0, _LINKLAYER, 0, 0, 0, octets)
    parms = _HTB_CLASS.pack(*spec, *spec, ticks, ticks, QUANTUM, 0, 0)
    return _message(device, "htb", ROOT, ROOT | bucket, attribute(_TCA_HTB_PARMS, parms))


def _queue_message(device: int, bucket: int, rate: int) -> Message:
    """The queue of a class: bounded in octets, so that a small packet finds room where a large one does not.

    It is TBF's and not a plain bfifo because TBF cuts what the kernel joined (GRO, GSO) before it is queued: a packet
    of 64,000 octets would never fit, or occupy the line for seconds. TBF's own rate is beyond all that there is.
    """
    limit = max(QUEUE_OCTETS, int(_octets(rate) * QUEUE_SECONDS))
    spec = (0, _LINKLAYER, 0, 0, 0, 0xFFFFFFFF)
    parms = _TBF.pack(*spec, 0, 0, 0, 0, 0, 0, limit, 0, 0)
    fast = attribute(_TCA_TBF_RATE64, _U64.pack(_NO_LIMIT)) + attribute(_TCA_TBF_BURST, _U32.pack(LARGEST_PACKET))
    return _message(device, "tbf", ROOT | bucket, bucket << 16, attribute(_TCA_TBF_PARMS, parms), fast)


def _octets(rate: int) -> int:
    """kbit/s as octets a second."""
    return rate * 125
