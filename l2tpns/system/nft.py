"""Read nf_tables, to find chains of other programs that drop packets of subscribers. Changes nothing.

Our rules are in the legacy tables. Every packet passes both kinds of tables, and either may drop it.
"""

from __future__ import annotations

import struct

from l2tpns.system.netlink_socket import NetlinkError
from l2tpns.system.nfnetlink import NfNetlink, attributes

_SUBSYSTEM = 10 << 8
_GETCHAIN = 4
_TABLE, _NAME, _HOOK, _POLICY = 1, 3, 4, 5
_HOOKNUM = 1
_FORWARD = 2  # NF_INET_FORWARD
_DROP = 0
_FAMILIES = {2: "ip", 1: "inet"}
_U32 = struct.Struct("!I")


def dropping_chains() -> list[str]:
    """Return `FAMILY TABLE CHAIN` of each chain that forwarded IPv4 packets pass and whose policy is to drop."""
    found: list[str] = []
    try:
        netlink = NfNetlink()
    except OSError:
        return found
    try:
        for family, word in _FAMILIES.items():
            for _, octets in netlink.dump(_SUBSYSTEM | _GETCHAIN, b"", family):
                chain = dict(attributes(octets))
                hook = dict(attributes(chain.get(_HOOK, b"")))
                if _number(hook.get(_HOOKNUM)) == _FORWARD and _number(chain.get(_POLICY)) == _DROP:
                    found.append(" ".join((word, _text(chain[_TABLE]), _text(chain[_NAME]))))
    except NetlinkError:
        pass  # this kernel has no nf_tables
    finally:
        netlink.close()
    return found


def _number(octets: bytes | None) -> int:
    return -1 if octets is None or len(octets) != 4 else int(_U32.unpack(octets)[0])


def _text(octets: bytes) -> str:
    return octets.rstrip(b"\0").decode(errors="replace")
