"""The sysctls of the tun device, with files in place of the kernel's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from l2tpns.system import sysctls
from l2tpns.system.sysctls import Sysctls

Place = Callable[..., Sysctls]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Makes files with these values, then the Sysctls of tun7."""
    monkeypatch.setattr(sysctls, "ROOT", tmp_path)

    def make(**files: str) -> Sysctls:
        for name, value in files.items():
            path = tmp_path / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{value}\n")
        return Sysctls("tun7")

    return make


def files_of(device: str, *, family: str = "ipv4", **values: str) -> dict[str, str]:
    return {f"{family}__conf__{device}__{name}": value for name, value in values.items()}


def test_only_what_differs_is_set_and_only_of_the_device(place: Place, tmp_path: Path) -> None:
    it = place(
        **files_of("tun7", send_redirects="1", accept_redirects="0", accept_source_route="1", forwarding="1"),
        **files_of("all", send_redirects="1", forwarding="1"),
    )
    assert it.apply() == ["send_redirects=0", "accept_source_route=0"]
    assert it.apply() == it.refused() == []
    assert set(it.state()) == {"send_redirects=0", "accept_redirects=0", "accept_source_route=0", "forwarding=1"}
    assert (tmp_path / "ipv4/conf/all/send_redirects").read_text() == "1\n"
    assert it.overruled() == ["net.ipv4.conf.all.send_redirects"]
    it.close()


@pytest.mark.parametrize("everywhere, changed", [("1", ["forwarding=1"]), ("0", [])])
def test_the_device_forwards_only_where_the_machine_does(place: Place, everywhere: str, changed: list[str]) -> None:
    it = place(**files_of("tun7", forwarding="0"), **files_of("all", forwarding=everywhere))
    assert it.apply() == changed and it.forwards() == (everywhere == "1")
    it.close()


def test_what_the_kernel_does_not_take_is_named(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    it = place(**files_of("tun7", send_redirects="1"))
    monkeypatch.setattr(it, "_write", lambda *_: False)
    assert (it.apply(), it.refused()) == ([], ["send_redirects=0"])
    it.close()


def test_a_kernel_that_shows_no_sysctls_is_no_error(place: Place) -> None:
    it = place()
    assert it.apply() == it.state() == it.overruled() == it.refused() == []
    assert it.forwards()
    it.close()
