"""A bounded cursor over received octets, for decoders.

It neither runs past its end nor lets octets be left over unseen. Knows nothing of any protocol.
"""

from __future__ import annotations

from l2tpns.errors import WireError


class Cursor:
    """Reads big-endian fields from `octets[start:end]`; too few octets left is a WireError."""

    __slots__ = ("_end", "_octets", "position")

    def __init__(self, octets: bytes, start: int = 0, end: int | None = None) -> None:
        last = len(octets) if end is None else end
        if not 0 <= start <= last <= len(octets):
            raise WireError(f"no octets {start} to {last} among {len(octets)}")
        self._octets = octets
        self._end = last
        self.position = start

    @property
    def left(self) -> int:
        """How many octets are still unread."""
        return self._end - self.position

    def take(self, count: int) -> bytes:
        """The next `count` octets."""
        after = self.position + count
        if count < 0 or after > self._end:
            raise WireError(f"{count} octets wanted, {self.left} left")
        taken = self._octets[self.position : after]
        self.position = after
        return taken

    def u8(self) -> int:
        return int.from_bytes(self.take(1), "big")

    def u16(self) -> int:
        return int.from_bytes(self.take(2), "big")

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "big")

    def rest(self) -> bytes:
        """Everything that is left."""
        return self.take(self.left)

    def done(self) -> None:
        """The structure ends here: anything left over is a WireError."""
        if self.left:
            raise WireError(f"{self.left} octets left over")
