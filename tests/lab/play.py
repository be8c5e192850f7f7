"""Run the LAC as a program: bring calls up, use them, and take them down on Ctrl-C or SIGTERM.

    python -m tests.lab.lac --lns 192.0.2.1 --sessions 100 --user user{n:06} --password secret --hold
    python -m tests.lab.lac --lns 192.0.2.1 --login fred:pw:pap --login mary:pw:chap --tun --ping 198.51.100.2

It reports events on standard output, with --json one object a line. The exit status is 0 if every call came up (or was
refused, with --expect-refused), else 1.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

import gevent
from gevent.event import Event

from tests.lab.lac import Dial, Endpoint, Impairment, Lac, Refused, Subscriber
from tests.lab.storm import Storm, exchange
from tests.lab.tun import TunLink


@dataclass(frozen=True, slots=True)
class Login:
    user: str
    password: str
    auth: str = "any"


def main(argv: list[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    player = Player(arguments)
    try:
        player.play()
    finally:
        player.close()
    sys.exit(1 if player.failed else 0)


class Player:
    """Run the program once."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.failed = 0
        self.links: list[TunLink] = []
        self.lacs: list[Lac] = []
        bad = Impairment(
            loss=arguments.loss, duplicate=arguments.duplicate, reorder=arguments.reorder, delay=arguments.delay
        )
        impairment = None if bad == Impairment() else bad
        self.endpoint = Endpoint(arguments.local, control=impairment, data=impairment, seed=arguments.seed)
        self.dial = Dial(
            auth=arguments.auth,
            mru=arguments.mru,
            calling=arguments.calling.encode(),
            called=arguments.called.encode(),
            sequencing_required=arguments.sequencing,
            length_bit=arguments.length_bit,
            pfc=arguments.compress,
            acfc=arguments.compress,
            compress=arguments.compress,
            proxy_lcp=arguments.proxy_lcp or arguments.proxy_auth,
            proxy_auth=arguments.proxy_auth,
        )

    def play(self) -> None:
        over = Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            gevent.signal_handler(number, over.set)
        if not self.connect():
            return
        subscribers = self.log_in() if self.arguments.login else self.storm()
        if self.arguments.tun:
            for subscriber in subscribers:
                user = subscriber.user.decode()
                name = self.arguments.tun.format(user=user)
                link = TunLink(subscriber, name, routes=self.arguments.route if not self.links else ())
                self.links.append(link)
                self.say("device", f"{link.name} is {user}'s", user=user, name=link.name, address=link.address)
        if self.arguments.ping is not None:
            self.ping(subscribers)
        if self.arguments.traffic is not None and subscribers:
            report = exchange(subscribers, self.arguments.traffic, count=self.arguments.count, size=self.arguments.size)
            self.say("traffic", str(report), sent=report.sent, returned=report.returned, corrupt=report.corrupt)
            self.failed += report.lost + report.corrupt
        if self.arguments.hold is not None:
            self.hold(subscribers, over)

    def connect(self) -> bool:
        options = self.arguments
        for number in range(options.tunnels):
            hostname = options.hostname if options.tunnels == 1 else f"{options.hostname}{number + 1}"
            secret = options.secret.encode() if options.secret else None
            lac = Lac(
                self.endpoint.local,
                options.lns,
                hostname,
                secret=secret,
                challenge=options.challenge,
                endpoint=self.endpoint,
                defaults=self.dial,
            )
            self.lacs.append(lac)
            try:
                lac.connect()
            except (Refused, TimeoutError) as error:
                self.failed += 1
                self.say("tunnel_refused", f"no tunnel for {hostname}: {error}", host=hostname, why=str(error))
                return False
        self.say("tunnels_up", f"{options.tunnels} tunnel(s) to {options.lns[0]}", tunnels=options.tunnels)
        return True

    def log_in(self) -> list[Subscriber]:
        """Log in the --login subscribers, one after the other, and report each."""
        online = []
        for number, login in enumerate(self.arguments.login):
            lac = self.lacs[number % len(self.lacs)]
            subscriber = lac.call(login.user, login.password, auth=login.auth)
            expected = login.user not in self.arguments.expect_refused
            try:
                subscriber.wait_online(self.arguments.timeout)
            except (Refused, TimeoutError) as error:
                told = subscriber.auth_message.decode(errors="replace")
                words = f"{login.user} is refused: {told or error}"
                self.say("refused", words, user=login.user, message=told, why=str(error))
                self.failed += expected
                continue
            self.failed += not expected
            subscriber.on_change = self.changed
            took = subscriber.online_at - subscriber.started_at
            dns = [str(server) for server in subscriber.dns]
            self.say(
                "online",
                f"{login.user} ({login.auth}) is online as {subscriber.address} after {took * 1000:.0f} ms",
                user=login.user,
                auth=login.auth,
                address=str(subscriber.address),
                dns=dns,
                took=round(took, 4),
            )
            online.append(subscriber)
        return online

    def changed(self, subscriber: Subscriber) -> None:
        """Report the end of a --login subscriber that was online."""
        ended = subscriber.ended
        if ended is not None:
            user = subscriber.user.decode(errors="replace")
            why = f"{ended.why.value}, result {ended.result}: {ended.text}".rstrip(": ")
            self.say("ended", f"{user} is offline: {why}", user=user, result=ended.result, text=ended.text, why=why)

    def storm(self) -> list[Subscriber]:
        options = self.arguments
        storm = Storm(
            self.lacs,
            options.sessions,
            window=options.window,
            rate=options.rate,
            users=lambda n: (options.user.format(n=n).encode(), options.password.encode()),
        )
        report = storm.run(options.timeout)
        facts = {f"p{int(share * 100)}": round(report.percentile(share), 5) for share in (0.5, 0.9, 0.99)}
        self.say("storm", str(report), online=report.online, rate=round(report.rate, 1), **facts)
        self.failed += report.asked - report.online
        return [subscriber for subscriber in storm.subscribers if subscriber.online]

    def ping(self, subscribers: list[Subscriber]) -> None:
        answered = 0
        for subscriber in subscribers[:20]:
            took = subscriber.ping(self.arguments.ping)
            answered += took is not None
            user = subscriber.user.decode(errors="replace")
            words = "no answer" if took is None else f"answer after {took * 1000:.2f} ms"
            self.say("ping", f"{user} pings {self.arguments.ping}: {words}", user=user, took=took)
        self.failed += min(len(subscribers), 20) - answered

    def hold(self, subscribers: list[Subscriber], over: Event) -> None:
        """Wait for a signal or until the time is up. Print the state every ten seconds."""
        clock = self.endpoint.now
        until = clock() + self.arguments.hold if self.arguments.hold else float("inf")
        while not over.wait(max(0.0, min(10.0, until - clock()))) and clock() < until:
            self.status(subscribers)
        self.status(subscribers)
        lost = sum(not subscriber.online for subscriber in subscribers)
        self.failed += lost if not over.is_set() else 0

    def status(self, subscribers: list[Subscriber]) -> None:
        facts = {
            "online": sum(subscriber.online for subscriber in subscribers),
            "echoes": sum(subscriber.echoes_answered for subscriber in subscribers),
            "packets_in": sum(subscriber.in_packets for subscriber in subscribers),
            "packets_out": sum(subscriber.out_packets for subscriber in subscribers),
        }
        self.say("status", ", ".join(f"{name} {value}" for name, value in facts.items()), **facts)

    def say(self, event: str, words: str, **facts: Any) -> None:
        print(json.dumps({"event": event, **facts}) if self.arguments.json else words, flush=True)

    def close(self) -> None:
        for link in self.links:
            link.close()
        for lac in self.lacs:
            lac.close(timeout=2.0)
        self.endpoint.close()


def _address(default_port: int) -> Any:
    def parse(text: str) -> tuple[str, int]:
        host, _, port = text.partition(":")
        return str(IPv4Address(host)), int(port or default_port)

    parse.__name__ = "address"
    return parse


def _login(text: str) -> Login:
    return Login(*text.split(":"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.lab.lac", description="A LAC to play with.")
    add = parser.add_argument
    add("--lns", type=_address(1701), required=True, metavar="ADDRESS[:PORT]")
    add("--local", type=_address(0), default=("0.0.0.0", 0), metavar="ADDRESS[:PORT]")
    add("--hostname", default="lac")
    add("--secret", default="", help="of the tunnel: answers the LNS's challenge")
    add("--challenge", action="store_true", help="challenge the LNS, too")
    add("--tunnels", type=int, default=1)
    add("--login", type=_login, action="append", default=[], metavar="USER:PASSWORD[:AUTH]", help="one call; repeat")
    add("--expect-refused", action="append", default=[], metavar="USER", help="this --login must not come up")
    add("--sessions", type=int, default=1, help="how many calls, when there is no --login")
    add("--user", default="user{n:06}", help="name of call n")
    add("--password", default="secret")
    add("--auth", choices=("any", "pap", "chap", "none"), default="any")
    add("--window", type=int, default=64, help="calls on their way at the same time")
    add("--rate", type=float, help="calls begun a second")
    add("--timeout", type=float, default=60.0, help="seconds to get online")
    add("--mru", type=int)
    add("--calling", default="0401")
    add("--called", default="08002")
    add("--sequencing", action="store_true", help="Sequencing Required")
    add("--length-bit", action="store_true", help="data messages with Length")
    add("--compress", action="store_true", help="ask for and use PFC and ACFC")
    add("--proxy-lcp", action="store_true")
    add("--proxy-auth", action="store_true", help="implies --proxy-lcp; needs --auth pap or chap")
    add("--loss", type=float, default=0.0, help="probability, of every packet both ways")
    add("--duplicate", type=float, default=0.0)
    add("--reorder", type=float, default=0.0)
    add("--delay", type=float, default=0.0, help="seconds")
    add("--seed", type=int, default=0, help="of the misfortunes")
    add("--tun", nargs="?", const="tun%d", metavar="NAME", help="a tun device for every call; {user} is its name")
    add("--route", action="append", default=[], metavar="PREFIX", help="route this through the first device")
    add("--ping", metavar="ADDRESS", help="through every call (the first twenty)")
    add("--traffic", type=_address(7000), metavar="ADDRESS[:PORT]", help="checked packets to tests.lab.traffic there")
    add("--count", type=int, default=10, help="packets per call")
    add("--size", type=int, default=64, help="octets of UDP data")
    add("--hold", type=float, nargs="?", const=0.0, metavar="SECONDS", help="stay until a signal, or so long")
    add("--json", action="store_true", help="one JSON object a line")
    return parser
