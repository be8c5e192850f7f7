"""Which datagrams the kernel's IPsec policies are about, as `ip xfrm` sets them (root, own namespace)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from l2tpns.system.ipsec import IpsecPolicies
from tests.lab.netns import Lab, Namespace, is_root

pytestmark = [pytest.mark.live, pytest.mark.skipif(not is_root(), reason="needs root for namespaces")]

LNS, LAC, OTHER = ("192.0.2.1", 1701), ("192.0.2.2", 40000), ("192.0.2.3", 1701)
ESP = ("tmpl", "src", "192.0.2.1", "dst", "192.0.2.2", "proto", "esp", "mode", "transport")


class Stage:
    def __init__(self, space: Namespace) -> None:
        self.space = space
        with space.entered():
            self.policies = IpsecPolicies()

    def add(self, *words: str) -> None:
        self.space.ip("xfrm", "policy", "add", *words)

    def protected(self) -> tuple[bool, bool]:
        """Return whether datagrams to the LAC and to the other one are protected."""
        self.policies.changed()
        return self.policies.protect(LNS, LAC), self.policies.protect(LNS, OTHER)


@pytest.fixture
def stage() -> Iterator[Stage]:
    with Lab() as lab:
        stage = Stage(lab.namespace("server"))
        yield stage
        stage.policies.close()


@pytest.mark.parametrize(
    ("words", "protected"),
    [
        ("src 192.0.2.1/32 dst 192.0.2.2/32 proto udp sport 1701 dir out", (True, False)),
        ("src 0.0.0.0/0 dst 192.0.2.0/24 dir out", (True, True)),
        ("src 0.0.0.0/0 dst 0.0.0.0/0 proto udp dport 1701 dir out", (False, True)),
        ("src 0.0.0.0/0 dst 0.0.0.0/0 proto tcp dir out", (False, False)),
        ("src 192.0.2.9/32 dst 0.0.0.0/0 dir out", (False, False)),
        ("src 0.0.0.0/0 dst 0.0.0.0/0 proto udp sport 1702 dir out", (False, False)),
        ("src 0.0.0.0/0 dst 0.0.0.0/0 dir in", (False, False)),
    ],
)
def test_a_policy_is_about_what_its_selector_names(stage: Stage, words: str, protected: tuple[bool, bool]) -> None:
    stage.add(*words.split(), *ESP)
    assert stage.protected() == protected


def test_the_first_policy_that_matches_decides(stage: Stage) -> None:
    stage.add(*"src 0.0.0.0/0 dst 192.0.2.0/24 dir out action block priority 20".split())
    assert stage.protected() == (True, True)
    stage.add(*"src 0.0.0.0/0 dst 192.0.2.2/32 dir out priority 10".split())  # passes as it is
    assert stage.protected() == (False, True)
    stage.add(*"src 0.0.0.0/0 dst 192.0.2.2/32 proto udp dir out priority 5".split(), *ESP)
    assert stage.protected() == (True, True)
    stage.space.ip("xfrm", "policy", "flush")
    assert stage.policies.changed() and not stage.policies.changed()
    assert stage.protected() == (False, False)


def test_hundreds_of_policies_are_read(stage: Stage) -> None:
    for number in range(1, 255):
        stage.add(*f"src 0.0.0.0/0 dst 10.0.0.{number}/32 dir out".split(), *ESP)
    assert stage.protected() == (False, False)
    assert stage.policies.protect(LNS, ("10.0.0.254", 1701))
