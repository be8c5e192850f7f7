"""Strangers who never stop, at the console and by HTTP: no subscriber loses a packet, no operator is locked out."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lab.lac import Lac
from tests.lab.netns import Lab, Namespace, is_root, three_hosts
from tests.lab.server import Server

pytestmark = [pytest.mark.live, pytest.mark.skipif(not is_root(), reason="needs root for namespaces")]

LNS, HOST = "192.0.2.1", "198.51.100.2"
PINGS = 100

# Sends for ever what it is given; a connection that is closed is made anew. With 0 octets it only connects.
STRANGER = """
import socket, sys
port, octets = int(sys.argv[1]), bytes.fromhex(sys.argv[2])
kept = []
print("ready", flush=True)
while True:
    sock = socket.socket()
    sock.settimeout(1)
    try:
        sock.connect(("192.0.2.1", port))
        while octets:
            sock.sendall(octets * (65536 // len(octets)))
    except OSError:
        pass
    kept.append(sock)
    if len(kept) > 100:
        kept.pop(0).close()
"""
# An operator elsewhere, who thinks before each word.
LOGIN = """
import socket, time
sock = socket.create_connection(("192.0.2.1", 23), 30)
def until(sign):
    said = b""
    while not said.endswith(sign):
        octets = sock.recv(4096)
        assert octets, said
        said += octets
    return said.decode(errors="replace")
until(b"Username: ")
for words, sign in ((b"op", b"Password: "), (b"hush", b"# "), (b"show version", b"# ")):
    time.sleep(0.7)
    sock.sendall(words + b"\\r\\n")
    said = until(sign)
print(said)
"""
SCRAPE = """
import sys, urllib.request
print(urllib.request.urlopen("http://192.0.2.1:9701/metrics", timeout=30).read().decode())
"""
CONSOLE, FIGURES = 23, 9701
KINDS = {
    "letters": (CONSOLE, b"a"),
    "redraw": (CONSOLE, b"\x0c"),
    "telnet": (CONSOLE, b"\xff\xfa\x1f" + b"a" * 1000),
    "connections": (CONSOLE, b""),
    "head": (FIGURES, b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 2000),
    "requests": (FIGURES, b"GET /metrics HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n"),
    "connections by HTTP": (FIGURES, b""),
}


@contextmanager
def strangers(space: Namespace, port: int, octets: bytes, number: int = 3) -> Iterator[None]:
    command = space.command(sys.executable, "-c", STRANGER, str(port), octets.hex())
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(number)]
    try:
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        yield
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_strangers_take_no_packet_of_a_subscriber_and_no_operator_s_place(lab: Lab) -> None:
    lac_space, space, host = three_hosts(lab)
    host.ip("route", "add", f"{LNS}/32", "via", "198.51.100.1")
    settings = {"cli_bind_address": "0.0.0.0", "metrics_bind_address": LNS}
    server = Server(space, lab.directory / "lns", settings=settings, secrets="fred * pw *\n", users="op:hush\n")
    try:
        server.start()
        fred = Lac(("0.0.0.0", 0), (LNS, 1701), sock=lac_space.socket()).connect().call("fred", "pw").wait_online()
        for kind, (port, octets) in KINDS.items():
            with strangers(lac_space, port, octets):
                lost = sum(fred.ping(HOST) is None for _ in range(PINGS))
                assert lost == 0, kind
                if kind in ("connections", "letters"):
                    assert "L2TPNS" in host.run(sys.executable, "-c", LOGIN), kind
                if kind in ("connections by HTTP", "requests"):
                    assert "l2tpns_sessions" in host.run(sys.executable, "-c", SCRAPE), kind
        assert server.stop() == 0
    finally:
        server.kill()
    assert server.tracebacks() == ""
