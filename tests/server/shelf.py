"""Plugins written by a test, on a server in its process."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from l2tpns.subscriber.session import Session
from tests.lab.inprocess import InProcess
from tests.lab.lac import Dial, Lac, Subscriber

QUICK = Dial(restart=0.3)

HEAD = """
from l2tpns.plugins import *
SEEN = []
def plugin_init(given):
    global server
    server = given
"""


class Shelf:
    """A plugin directory, and the server that looks into it. What a plugin puts into its list SEEN is `seen(name)`."""

    def __init__(self, server: InProcess, directory: Path) -> None:
        self.server = server
        self.plugins = server.plugins
        self.directory = directory
        self._lac: Lac | None = None

    def write(self, name: str, source: str, *, head: str = HEAD) -> Path:
        path = self.directory / f"{name}.py"
        path.write_text(head + textwrap.dedent(source))
        return path

    def load(self, name: str, source: str, *, head: str = HEAD) -> None:
        self.write(name, source, head=head)
        self.plugins.load(name)

    def module(self, name: str) -> Any:
        return next(plugin.code.module for plugin in self.plugins.loaded if plugin.name == name)

    def seen(self, name: str) -> list[Any]:
        found: list[Any] = self.module(name).SEEN
        return found

    @property
    def lac(self) -> Lac:
        if self._lac is None:
            self._lac = self.server.lac(defaults=QUICK).connect()
        return self._lac

    def call(self, user: str = "fred", password: str = "pw", **dial: Any) -> Subscriber:
        return self.lac.call(user, password, **dial)

    def online(self, user: str = "fred", **dial: Any) -> Subscriber:
        return self.call(user, **dial).wait_online()

    def session(self, user: str = "fred") -> Session:
        return next(iter(self.server.registry.by_user[user]))

    def events(self, event: str) -> list[dict[str, Any]]:
        return self.server.events(event)
