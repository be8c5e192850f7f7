"""docs/plugins.md: its tutorial works as shown."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from l2tpns.hooks import HOOKS
from tests.lab.inprocess import until
from tests.server.operators import Desk
from tests.server.shelf import QUICK
from tests.server.subscribers import refused

PAGE = (Path(__file__).parents[3] / "docs/plugins.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def lines_of_code(source: str) -> int:
    return sum(1 for line in source.splitlines() if line.strip() and not line.lstrip().startswith(('"""', "#")))


def test_the_tutorial_builds_a_plugin_in_ten_lines() -> None:
    assert lines_of_code(EXAMPLES[0]) <= 10 and len(EXAMPLES) == 2


@pytest.mark.parametrize("example", EXAMPLES)
def test_what_the_tutorial_builds_works(open_desk: Callable[..., Desk], tmp_path: Path, example: str) -> None:
    desk = open_desk(plugin_dir=str(tmp_path))
    (tmp_path / "threestrikes.py").write_text(example)
    operator = desk.plain()
    assert "Loading plugin threestrikes" in operator.do("load plugin threestrikes")
    lac = desk.server.lac(defaults=QUICK).connect()
    for _ in range(3):
        refused(lac.call("fred", "wrong"))
    asked = len(desk.server.backend.asked)
    refused(lac.call("fred", "pw"))  # the fourth: the right password is of no use any more
    assert len(desk.server.backend.asked) == asked == 3
    lac.call("mary", "pw", calling=b"0402").wait_online()
    shown = operator.do("show plugins")
    assert re.search(r"  threestrikes\n.*pre_auth +5 calls", shown, re.DOTALL), shown
    until(lambda: desk.server.registry.by_user.keys() == {"mary"})


def test_the_longer_one_has_a_variable_and_a_counter_and_forgets_nothing_over_a_reload(
    open_desk: Callable[..., Desk], tmp_path: Path
) -> None:
    desk = open_desk(plugin_dir=str(tmp_path))
    (tmp_path / "threestrikes.py").write_text(EXAMPLES[1])
    operator = desk.plain()
    operator.do("load plugin threestrikes")
    assert "Setting" in operator.do("set threestrikes_most 1")
    lac = desk.server.lac(defaults=QUICK).connect()
    refused(lac.call("fred", "wrong"))
    operator.do("reload plugin threestrikes")
    refused(lac.call("fred", "pw"))
    assert '"threestrikes_refused": 1' in operator.do("show counters | json")
    assert desk.server.events("plugin_says")[0]["text"] == "too many failures"


def test_the_reference_has_every_hook() -> None:
    assert all(f"### {hook.function}(" in PAGE for hook in HOOKS.values())
