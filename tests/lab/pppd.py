"""Run Debian's unmodified xl2tpd and pppd in a guest machine: real subscribers, each also its own LAC.

    clients = Clients(guest, "192.0.2.1", [Peer("one", user="fred", password="pw", auth="chap")])
    clients.start()                       # kernel=True: L2TP in the guest's kernel, else frames through a pty
    link = clients.dial("one")            # waits until IPCP is open
    guest.run(f"ping -c3 -I {link.device} 198.51.100.2")
    clients.hang_up("one")

Each link gets its own routing table chosen by source address, because several links have the same far end.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address

from tests.lab import PATIENCE
from tests.lab.netns import CommandFailed
from tests.lab.uml import Guest

REFUSALS = {
    "pap": ("refuse-chap", "refuse-mschap", "refuse-mschap-v2", "refuse-eap"),
    "chap": ("refuse-pap", "refuse-mschap", "refuse-mschap-v2", "refuse-eap"),
    "mschap": ("refuse-pap", "refuse-chap", "refuse-mschap-v2", "refuse-eap"),
    "mschapv2": ("refuse-pap", "refuse-chap", "refuse-mschap", "refuse-eap"),
    "any": ("refuse-eap",),
}
KERNEL_MODULES = "l2tp_ppp"

# Run pppd again on the same pty after signal 9: the far end sees LCP start over in the middle of a session.
# The pty still has the line discipline of PPP, and with it the dead pppd's channel: TIOCSETD gives it N_TTY back.
AGAIN = r"""#!/bin/sh
/orig/pppd "$@"
status=$?
[ $status = 137 ] || exit $status
perl -e 'use Fcntl; sysopen(F, $ARGV[0], O_RDWR | O_NOCTTY | O_NONBLOCK) or die; $n = pack("i", 0); \
    ioctl(F, 0x5423, $n) or die' "$1"
exec /orig/pppd "$@"
"""


class LinkFailed(Exception):
    """Report that the link did not come up. The text holds pppd's and xl2tpd's log."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Describe one entry of xl2tpd.conf and its pppd options."""

    name: str
    user: str
    password: str
    auth: str = "any"  # a key of REFUSALS: the only protocol the client accepts; any: the first one the server requests
    secret: str = ""  # of the tunnel
    mtu: int = 0
    mru: int = 0
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Link:
    """Describe a ppp interface that is up."""

    name: str
    device: str
    address: IPv4Address
    gateway: IPv4Address
    mtu: int
    took: float  # seconds from dialling to IPCP


@dataclass(frozen=True, slots=True)
class Traffic:
    """Hold what the client's kernel counted on a ppp interface."""

    in_packets: int
    in_octets: int
    out_packets: int
    out_octets: int


class Clients:
    """Run xl2tpd in one guest, with its peers. All of them dial the same server."""

    def __init__(self, guest: Guest, server: str, peers: Sequence[Peer]) -> None:
        self.guest = guest
        self.server = server
        self.peers = {peer.name: peer for peer in peers}
        self.units = {peer.name: unit for unit, peer in enumerate(peers)}

    def start(self, *, kernel: bool = False, negotiate_again: bool = False) -> None:
        """Start xl2tpd. With negotiate_again, a pppd killed by signal 9 is followed by another one on the same pty."""
        modprobe = "modprobe -d /modules"
        # xl2tpd asks for the socket type when it starts, and uses the kernel if it gets one.
        self.guest.run(f"{modprobe} {KERNEL_MODULES}" if kernel else f"{modprobe} -r {KERNEL_MODULES} || true")
        if negotiate_again:
            self.guest.write("/tmp/again", AGAIN)
            self.guest.run(
                "chmod 755 /tmp/again; mkdir -p /orig; mountpoint -q /orig ||"
                " { mount -t hostfs -o ro,/usr/sbin none /orig && mount --bind /tmp/again /usr/sbin/pppd; }"
            )
        self.guest.run("rm -rf /run/xl2tpd; mkdir -p /run/xl2tpd /etc/xl2tpd /etc/ppp; : > /etc/ppp/options")
        self.guest.write("/etc/xl2tpd/secrets", "".join(self._secrets()))
        self.guest.write("/etc/xl2tpd/xl2tpd.conf", "".join(self._entries()))
        for peer in self.peers.values():
            self.guest.write(f"/etc/ppp/options.{peer.name}", self._options(peer))
        self.guest.run(
            "/usr/sbin/xl2tpd -D -c /etc/xl2tpd/xl2tpd.conf -s /etc/xl2tpd/secrets -p /run/xl2tpd/pid"
            " -C /run/xl2tpd/control >/var/log/xl2tpd 2>&1 &"
        )
        self.guest.run("for n in $(seq 50); do [ -p /run/xl2tpd/control ] && exit 0; sleep 0.1; done; exit 1")

    def stop(self) -> None:
        """Stop xl2tpd with SIGINT, on which it sends StopCCN."""
        self.guest.run("kill -INT $(cat /run/xl2tpd/pid); sleep 1; killall -q -9 pppd xl2tpd || true", check=False)

    def vanish(self) -> None:
        """Stop all traffic, as when the client's power fails."""
        self.guest.run("killall -q -9 xl2tpd pppd; true")

    def control(self, command: str) -> None:
        self.guest.run(f"echo '{command}' > /run/xl2tpd/control")

    def dial(self, name: str, timeout: float = 4 * PATIENCE) -> Link:
        self.call(name)
        return self.wait_up(name, timeout)

    def call(self, name: str) -> None:
        """Dial. Does not wait."""
        self.guest.run(f"rm -f /run/up.{name}; : > /var/log/ppp.{name}")
        self.control(f"c {name}")

    def wait_up(self, name: str, timeout: float = 4 * PATIENCE) -> Link:
        """Wait for IPCP. Raises LinkFailed at once if pppd gave up."""
        begun = time.monotonic()
        device = f"ppp{self.units[name]}"
        while True:
            log = self.log(name)
            local = re.findall(r"^local  IP address (\S+)", log, re.M)
            remote = re.findall(r"^remote IP address (\S+)", log, re.M)
            if local and remote:
                mtu = int(self.guest.run(f"cat /sys/class/net/{device}/mtu"))
                table = 100 + self.units[name]
                self.guest.run(
                    f"ip route replace default dev {device} table {table};"
                    f" ip rule del table {table} 2>/dev/null; ip rule add from {local[-1]} table {table}"
                )
                took = time.monotonic() - begun
                return Link(name, device, IPv4Address(local[-1]), IPv4Address(remote[-1]), mtu, took)
            if re.search(r"^(Connection terminated|Exit)\.", log, re.M) or time.monotonic() - begun > timeout:
                raise LinkFailed(f"{name}:\n{log}\n{self.guest.run('tail -n 20 /var/log/xl2tpd', check=False)}")
            time.sleep(0.2)

    def hang_up(self, name: str) -> None:
        """End the call by xl2tpd, as a user does."""
        self.control(f"h {name}")

    def disconnect(self, name: str) -> None:
        """End the tunnel with StopCCN."""
        self.control(f"d {name}")

    def terminate(self, name: str) -> None:
        """Send SIGTERM to pppd, which sends an LCP Terminate-Request and then ends the call."""
        self.guest.run(f"kill -TERM $(head -n 1 /run/ppp-{name}.pid)")

    def kill(self, name: str) -> None:
        """Kill pppd with signal 9."""
        self.guest.run(f"kill -9 $(head -n 1 /run/ppp-{name}.pid)")

    def is_up(self, name: str) -> bool:
        return "inet" in self.guest.run(f"ip -4 -o address show dev ppp{self.units[name]}", check=False)

    def wait_down(self, name: str, timeout: float = 2 * PATIENCE) -> None:
        deadline = time.monotonic() + timeout
        while self.guest.run(f"test -e /sys/class/net/ppp{self.units[name]} && echo there", check=False):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{name} is still up\n{self.log(name)}")
            time.sleep(0.2)

    def log(self, name: str) -> str:
        """Return pppd's log with `debug`: every packet of LCP, PAP, CHAP, IPCP."""
        with suppress(CommandFailed):
            return self.guest.run(f"cat /var/log/ppp.{name}")
        return ""

    def ping(self, link: Link, target: str, *, count: int = 3, size: int = 56, df: bool = False) -> int:
        """Send echo requests from the link's address. Return how many were answered.

        They are sent one at a time: after an answer, ping waits at most 200 ms for the next one, despite -W.
        """
        one = f"ping -n -q -W 20 -c 1 -s {size} {'-M do' if df else ''} -I {link.address} {target}"
        text = self.guest.run(
            f"for number in $(seq {count}); do {one}; done", check=False, timeout=count * 25 + PATIENCE
        )
        return text.count(" 1 received")

    def traffic(self, link: Link) -> Traffic:
        text = self.guest.run(
            f"cd /sys/class/net/{link.device}/statistics && cat rx_packets rx_bytes tx_packets tx_bytes"
        )
        return Traffic(*(int(word) for word in text.split()))

    def _secrets(self) -> list[str]:
        # xl2tpd looks up its secret by the two host names, not by the entry: the machine has one secret.
        return [f"* * {secret}\n" for secret in {peer.secret for peer in self.peers.values() if peer.secret}]

    def _entries(self) -> list[str]:
        entries = ["[global]\nport = 1701\nauth file = /etc/xl2tpd/secrets\n"]
        for peer in self.peers.values():
            entries.append(
                f"\n[lac {peer.name}]\nlns = {self.server}\npppoptfile = /etc/ppp/options.{peer.name}\n"
                f"name = {peer.user}\nrequire authentication = no\nlength bit = yes\nppp debug = yes\nredial = no\n"
                + ("challenge = yes\n" if peer.secret else "")
            )
        return entries

    def _options(self, peer: Peer) -> str:
        lines = [
            *("noauth", "nodefaultroute", "noipdefault", "usepeerdns", "debug", "nodetach"),
            *("ipcp-accept-local", "ipcp-accept-remote", "lcp-echo-interval 0", "lcp-restart 2"),
            *(f"name {peer.user}", f'password "{peer.password}"', f"linkname {peer.name}"),
            *(f"unit {self.units[peer.name]}", f"logfile /var/log/ppp.{peer.name}"),
            *REFUSALS[peer.auth],
            *([f"mtu {peer.mtu}"] if peer.mtu else []),
            *([f"mru {peer.mru}"] if peer.mru else []),
            *peer.options,
        ]
        return "\n".join(lines) + "\n"
