"""Remove what is ours from the kernel: at the start, after a crash, and at the end.

Only what carries our mark is removed: see firewall.py and tun_device.py. The kernel removes routes and classes with the
tun device.
"""

from __future__ import annotations

import socket
from pathlib import Path

import structlog

from l2tpns.errors import L2tpnsError
from l2tpns.proto.l2tp.header import PORT
from l2tpns.runtime.log import Logger
from l2tpns.system import nft
from l2tpns.system.clsact import remove_all as remove_filters
from l2tpns.system.firewall import Firewall, FirewallError
from l2tpns.system.garden_rules import USERS
from l2tpns.system.ipset import IpSets
from l2tpns.system.pins import find_store
from l2tpns.system.rtnetlink import Netlink
from l2tpns.system.tun_device import remove_kept

PREFIX = "l2tpns_"  # of the names of sets that the manual does not name


def remove_rules(firewall: Firewall, log: Logger) -> int:
    """Remove rules and chains. Return how many. After that the sets are unused and may be filled again."""
    try:
        return firewall.remove_all_ours()
    except FirewallError as error:
        log.error("firewall_not_cleaned", why=str(error))
        return 0


def remove_everything() -> int:
    """Remove rules, chains, sets, devices and programs while no server runs. Return how many. Raises L2tpnsError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("0.0.0.0", PORT))
        except OSError as error:
            raise L2tpnsError(f"a server runs here: UDP {PORT}: {error.strerror}") from None
    log = structlog.get_logger()
    removed = sum(Firewall(log, instance=one).remove_all_ours() for one in Firewall(log).owners())
    if (store := find_store()) is not None:
        removed += store.remove()
    netlink = Netlink()
    try:
        removed += remove_filters(netlink) + len(remove_kept(netlink))
    finally:
        netlink.close()
    sets = IpSets()
    try:
        before = len(sets.names())
        for name in sets.names():
            if name.startswith((PREFIX, USERS)):
                sets.destroy(name)
        return removed + before - len(sets.names())
    finally:
        sets.close()


def begin(firewall: Firewall, log: Logger, *, keep: bool = False) -> None:
    """Log which tables are used and what conflicts with them, and remove what an earlier process left.

    With `keep` its rules are in use.
    """
    log.info(
        "firewall_used",
        tables="iptables-legacy",
        why="Debian's iptables is iptables-nft, which does not show these rules: use iptables-legacy",
    )
    for chain in nft.dropping_chains() if _has_nft() else ():
        log.warning("nft_in_the_way", chain=chain, why="its policy drops forwarded packets")
    removed = 0 if keep else remove_rules(firewall, log)
    if removed:
        log.warning("firewall_cleaned", rules=removed, why="left behind by an earlier process")


def _has_nft() -> bool:
    """Return True if nf_tables is loaded: asking it would load it."""
    return Path("/sys/module/nf_tables").exists() or not Path("/proc/modules").exists()
