"""The names of one server's chains, sets and rules: several servers may share a network namespace.

The server whose tun device has the default name uses the manual's names. Those of another server end with its device:
`garden.tun5`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

DEFAULT_DEVICE = "tun0"
_OURS = "l2tpns"


@dataclass(frozen=True, slots=True)
class Instance:
    """One server. `suffix` is empty, or a dot and the name of its tun device."""

    suffix: str = ""

    def name(self, base: str) -> str:
        """Return this server's name for a chain or a set."""
        return f"{base}{self.suffix}"

    def base(self, name: str) -> str:
        """Return what `name` was given for a chain or a set; empty if that is another server's."""
        base, dot, device = name.partition(".")
        return base if dot + device == self.suffix else ""

    @property
    def ours(self) -> str:
        """Return the comment of this server's rules."""
        return self.name(_OURS)

    @property
    def made(self) -> str:
        """Return the comment of a rule in a chain of this server that is removed if all its rules are the server's."""
        return f"{self.ours} made this chain"

    @property
    def filled(self) -> str:
        """Return the comment of a rule in a chain of this server that is removed with all its rules."""
        return f"{self.ours} made and filled this chain"

    @property
    def marks(self) -> tuple[str, str]:
        return self.made, self.filled

    def owns(self, comment: str) -> bool:
        """Return whether a rule with this comment is the server's."""
        return comment in (self.ours, *self.marks)


def instance_of(device: str) -> Instance:
    """Return the server with this tun device. What a name of a chain had better not contain becomes "_"."""
    return Instance("" if device == DEFAULT_DEVICE else "." + re.sub(r"[^\w.-]", "_", device, flags=re.ASCII))


def instance_from(comment: str) -> Instance | None:
    """Return the server whose rule has this comment, None if it is no server's."""
    name, dot, device = comment.partition(" ")[0].partition(".")
    found = Instance(dot + device)
    return found if name == _OURS and found.owns(comment) else None
