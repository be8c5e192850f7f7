"""At the highest level the log tells everything but secrets: every kind of login, right, wrong and malformed."""

from __future__ import annotations

import base64
import signal
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest

from l2tpns.proto.ppp.frame import Protocol
from tests.lab import PATIENCE
from tests.lab.lac import Lac, Refused, Subscriber, Why
from tests.lab.netns import Lab, Namespace, is_root, three_hosts
from tests.lab.pppwishes import Phase
from tests.lab.radius_server import RadiusServer, User
from tests.lab.server import Server, Setting

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.skipif(not is_root(), reason="namespaces need root")]

LNS, HOST = ("192.0.2.1", 1701), "198.51.100.2"
TUNNEL_SECRET = "Tunnel-zq7Kd"
RADIUS_SECRET = "Radius-vv3Xw"
PASSWORD = "Bonbon-m4Tyh"  # of all users
WRONG = "Guessed-j8Rn"
SECRETS = (TUNNEL_SECRET, RADIUS_SECRET, PASSWORD, WRONG)
USERS = ("fred", "mary", "proxy")


@pytest.fixture
def hosts() -> Iterator[tuple[Lab, Namespace, Namespace, Namespace]]:
    with Lab() as lab:
        yield (lab, *three_hosts(lab))


def shapes(secret: str) -> list[str]:
    """How it would look in a line."""
    octets = secret.encode()
    spaced = octets.hex(" ")
    return [
        secret,
        octets.hex(),
        spaced,
        octets.hex().upper(),
        repr(list(octets))[1:-1],
        base64.b64encode(octets).decode(),
    ]


def shown(directory: Path) -> list[tuple[str, str]]:
    """(file, secret) wherever one stands in what the daemon has written, its configuration apart."""
    found = []
    for file in directory.rglob("*"):
        if not file.is_file() or file.name in ("l2tpns.cfg", "l2tpns.secrets"):
            continue
        text = file.read_text(errors="backslashreplace")
        found += [(file.name, secret) for secret in SECRETS if any(shape in text for shape in shapes(secret))]
    return found


def connect(namespace: Namespace, secret: str = TUNNEL_SECRET, *, hide: bool = False) -> Lac:
    with namespace.entered():
        lac = Lac(("192.0.2.2", 0), LNS, "lac1", secret=secret.encode(), challenge=True, hide=hide)
    return lac.connect(3.0 if secret == WRONG else PATIENCE)


def logins(namespace: Namespace) -> None:
    """All the ways in, and the ways not to get in."""
    with pytest.raises((Refused, TimeoutError)):  # what we hide with another secret it cannot read
        connect(namespace, WRONG)
    for hide in (False, True):
        lac = connect(namespace, hide=hide)
        for auth in ("pap", "chap"):
            fred = lac.call("fred", PASSWORD, auth=auth).wait_online()
            proxied = lac.call("proxy", PASSWORD, auth=auth, proxy_lcp=True, proxy_auth=True).wait_online()
            fred.restart()  # and once more
            wait_again(fred)
            wrong = [lac.call("mary", WRONG, auth=auth, proxy_lcp=proxy, proxy_auth=proxy) for proxy in (False, True)]
            for call in wrong:
                assert call.wait_ended().why is Why.CDN
            fred.terminate()
            proxied.hangup()
        mary = lac.call("mary", PASSWORD, auth="chap").wait_online()
        for packet in malformed():
            mary.send_frame(Protocol.PAP, packet)
            mary.send_ppp(b"\xc0\x23" + packet)
        twisted = lac.call("mary", PASSWORD, auth="pap")
        twisted.on_frame = twist
        twisted.wait_phase(Phase.AUTHENTICATE)
        gevent.sleep(0.3)  # it has been heard
        lac.close()


def wait_again(subscriber: Subscriber) -> None:
    """Offline, and online again."""
    subscriber.wait(lambda: not subscriber.online)
    subscriber.wait_online()


def malformed() -> list[bytes]:
    """PAP requests whose lengths lie."""
    name, password = b"mary", PASSWORD.encode()
    fields = bytes((len(name),)) + name + bytes((len(password),)) + password
    whole = b"\x01\x07" + (4 + len(fields)).to_bytes(2, "big") + fields
    return [
        whole,
        whole[:2] + b"\xff\xff" + whole[4:],
        whole[:2] + b"\x00\x04" + whole[4:],
        whole[:4] + b"\xff" + whole[5:],
        whole[:4] + bytes((len(fields),)) + whole[5:],
        whole[:4] + b"\x00" + whole[5:],
        whole[:9] + b"\xff" + whole[10:],
        whole[:-1],
    ]


def twist(way: str, protocol: int, packet: bytes) -> bytes | None:
    """The name's length is that of name and password together."""
    if way == "out" and protocol == Protocol.PAP:
        return packet[:4] + bytes((len(packet) - 5,)) + packet[5:]
    return packet


def run(lab: Lab, lac_ns: Namespace, server_ns: Namespace, settings: dict[str, Setting], secrets: str | None) -> Server:
    everything: dict[str, Setting] = {"debug": 5, "l2tp_secret": TUNNEL_SECRET, "l2tp_challenge": True}
    everything |= {"l2tp_hide_avps": True, "radius_authtypes": "pap,chap", "shutdown_timeout": 4}
    server = Server(server_ns, lab.directory / "lns", settings=everything | settings, secrets=secrets)
    server.start()
    logins(lac_ns)
    for number in (signal.SIGUSR1, signal.SIGHUP):
        server.signal(number)
    server.wait_for("reloaded")
    assert gevent.get_hub().threadpool.apply(server.stop) == 0  # and our RADIUS server goes on meanwhile
    assert server.tracebacks() == ""
    # The log has looked closely enough to have seen them.
    events = {entry["event"] for entry in server.log()}
    assert {"ppp_received", "ppp_sent", "control_received_fields", "session_up", "auth_refused"} <= events
    assert {"proxy_authentication_used", "lcp_renegotiated", "status", "reloaded"} <= events
    return server


def test_no_secret_and_no_password_stands_in_the_log_with_the_secrets_file(
    hosts: tuple[Lab, Namespace, Namespace, Namespace],
) -> None:
    lab, lac_ns, server_ns, _ = hosts
    secrets = "".join(f"{user} * {PASSWORD} *\n" for user in USERS)
    server = run(lab, lac_ns, server_ns, {"radius_secret": RADIUS_SECRET}, secrets)
    assert shown(server.directory) == []


def test_no_secret_and_no_password_stands_in_the_log_with_radius(
    hosts: tuple[Lab, Namespace, Namespace, Namespace],
) -> None:
    lab, lac_ns, server_ns, host_ns = hosts
    users = {user.encode(): User(PASSWORD.encode(), [(18, b"welcome")]) for user in USERS}
    with host_ns.entered():
        radius = RadiusServer(RADIUS_SECRET.encode(), users, host=HOST, port=1812).start()
    settings: dict[str, Setting] = {
        "primary_radius": HOST,
        "primary_radius_port": 1812,
        "radius_secret": RADIUS_SECRET,
        "radius_accounting": True,
    }
    try:
        server = run(lab, lac_ns, server_ns, settings, None)
    finally:
        radius.stop()
    assert [request.password for request in radius.requests if request.one(2)]  # passwords went that way
    assert radius.records
    assert shown(server.directory) == []
