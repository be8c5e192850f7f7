"""Names of two servers in one network namespace."""

from __future__ import annotations

import pytest

from l2tpns.system.instance import Instance, instance_from, instance_of

DEFAULT, OTHER = instance_of("tun0"), instance_of("tun5")


def test_the_default_device_has_the_manuals_names_and_another_one_appends_its_own() -> None:
    assert [one.name("garden_users") for one in (DEFAULT, OTHER)] == ["garden_users", "garden_users.tun5"]
    assert instance_of("it's.5").name("throttle") == "throttle.it_s.5"
    assert len(instance_of("a" * 15).name("l2tpns_throttle")) == 31


def test_a_server_knows_its_names_and_no_others() -> None:
    assert (DEFAULT.base("garden_users"), OTHER.base("garden_users.tun5")) == ("garden_users", "garden_users")
    assert (DEFAULT.base("garden_users.tun5"), OTHER.base("garden_users")) == ("", "")
    assert OTHER.base("garden_users.tun55") == ""


@pytest.mark.parametrize("server", [DEFAULT, OTHER, instance_of("a.b")])
def test_the_comment_of_a_rule_says_whose_it_is(server: Instance) -> None:
    for comment in (server.ours, server.made, server.filled):
        assert instance_from(comment) == server
        assert [one.owns(comment) for one in (DEFAULT, OTHER)] == [server == DEFAULT, server == OTHER]


@pytest.mark.parametrize("comment", ["", "l2tpnsx", "l2tpns is great", "my l2tpns", "l2tpns.tun5 is great"])
def test_a_comment_of_the_operators_is_nobodys(comment: str) -> None:
    assert instance_from(comment) is None
