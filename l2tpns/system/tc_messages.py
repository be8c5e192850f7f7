"""The messages of traffic control (rtnetlink): HTB, its classes, their queues, and the filter that chooses a class.

linux/pkt_sched.h, linux/pkt_cls.h, linux/rtnetlink.h. How they are used: shaping.py.
"""

from __future__ import annotations

import struct

from pyroute2.netlink import nlmsg
from pyroute2.netlink.rtnl.tcmsg import tcmsg

from l2tpns.runtime.token_bucket import burst_size, octets_per_second, queue_size
from l2tpns.system.nfnetlink import attribute
from l2tpns.system.rtnetlink import Message

ROOT, ROOT_MASK = 1 << 16, 0xFFFF0000  # handle of HTB; class n is 1:n, and the queue of its packets n:
FILTER = 1  # handle of its only filter
MARK_SHIFT = 16  # the upper half of a packet's mark is its class
DIRECT_QUEUE = 2000  # packets of all sessions that are not throttled: as long as the device's own queue
MAX_PACKET = 1600  # the device's MTU is below; what is larger was joined by the kernel (GRO), and is cut again
QUANTUM = 1600  # octets of a class in its turn, where more than one may send

RTM_NEWQDISC, RTM_NEWTCLASS, RTM_DELTCLASS, RTM_NEWTFILTER = 36, 40, 41, 44
RTM_GETQDISC, RTM_GETTCLASS, RTM_GETTFILTER = 38, 42, 46
NLM_F_REPLACE, NLM_F_CREATE = 0x100, 0x400
TC_H_ROOT = 0xFFFFFFFF
_ETH_P_ALL = 0x0300  # in network order
_TICKS = 1_000_000_000 // 64  # of the kernel's packet scheduler, a second
_LINKLAYER = 1  # Ethernet: makes the kernel compute instead of reading tables of ours
_NO_LIMIT = 50_000_000_000  # octets per second: the queue below HTB never delays a packet

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


class TcMessage(nlmsg):  # type: ignore[misc]
    """A message of traffic control. pyroute2's lacks cls_bpf, and computes tables that the kernel does not read."""

    prefix = "TCA_"
    fields = tcmsg.fields
    nla_map = (("TCA_UNSPEC", "none"), ("TCA_KIND", "asciiz"), ("TCA_OPTIONS", "cdata"))


def tc_message(device: int, kind: str, parent: int, handle: int, *options: bytes) -> Message:
    """Return a message about a queue, class or filter of a device."""
    message = TcMessage()
    message["index"] = device
    message["parent"] = parent
    message["handle"] = handle
    if kind:
        message["attrs"] = [("TCA_KIND", kind), ("TCA_OPTIONS", b"".join(options))]
    return message


def root_message(device: int) -> Message:
    """Return the message that makes HTB the root queue. Packets without a class bypass it."""
    init = attribute(_TCA_HTB_INIT, _HTB_ROOT.pack(3, 10, 0, 0, 0))
    return tc_message(device, "htb", TC_H_ROOT, ROOT, init, attribute(_TCA_HTB_DIRECT_QLEN, _U32.pack(DIRECT_QUEUE)))


def filter_message(device: int) -> Message:
    """Return the message that makes the filter, which reads the class in the packet's mark."""
    program = b"".join(_INSTRUCTION.pack(*each) for each in _PROGRAM)
    count = attribute(_TCA_BPF_OPS_LEN, _U16.pack(len(_PROGRAM)))
    message = tc_message(device, "bpf", ROOT, FILTER, count, attribute(_TCA_BPF_OPS, program))
    message["info"] = 1 << 16 | _ETH_P_ALL  # priority among filters, and protocol
    return message


def class_message(device: int, bucket: int, rate: int) -> Message:
    """Return the message that makes or changes the class of a bucket. `rate` in kbit/s."""
    octets = octets_per_second(rate)
    ticks = burst_size(rate) * _TICKS // octets
    spec = (0, _LINKLAYER, 0, 0, 0, octets)
    parms = _HTB_CLASS.pack(*spec, *spec, ticks, ticks, QUANTUM, 0, 0)
    return tc_message(device, "htb", ROOT, ROOT | bucket, attribute(_TCA_HTB_PARMS, parms))


def queue_message(device: int, bucket: int, rate: int) -> Message:
    """Return the message that makes the queue of a class, bounded in octets.

    The queue is a TBF and not a plain bfifo because TBF splits what the kernel has joined (GRO, GSO) before queueing:
    a packet of 64,000 octets would never fit, or occupy the line for seconds. The rate of the TBF itself is no limit.
    """
    spec = (0, _LINKLAYER, 0, 0, 0, 0xFFFFFFFF)
    parms = _TBF.pack(*spec, 0, 0, 0, 0, 0, 0, queue_size(rate), 0, 0)
    fast = attribute(_TCA_TBF_RATE64, _U64.pack(_NO_LIMIT)) + attribute(_TCA_TBF_BURST, _U32.pack(MAX_PACKET))
    return tc_message(device, "tbf", ROOT | bucket, bucket << 16, attribute(_TCA_TBF_PARMS, parms), fast)
