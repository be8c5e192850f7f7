"""layout.py against fastpath.h, and the shipped object against its source."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from l2tpns.dataplane.fastpath import layout
from l2tpns.dataplane.fastpath.programs import OBJECT, read_object

HERE = Path(layout.__file__).parent
HEADER = (HERE / "fastpath.h").read_text()
SIZES = {"be16": 2, "be32": 4, "__u8": 1, "__u16": 2, "__u32": 4, "__u64": 8}


def fields(structure: str) -> list[tuple[str, int]]:
    """Return the names and sizes of the fields of a structure of the header, which has no padding."""
    found = re.search(rf"^struct {structure} \{{(.*?)^\}};", HEADER, re.M | re.S)
    assert found is not None
    return [(name, SIZES[kind]) for kind, name in re.findall(r"^\t(\w+) (\w+);", found[1], re.M)]


def test_the_shipped_object_was_compiled_from_the_source_as_it_is() -> None:
    source = b"".join(path.read_bytes() for path in sorted(HERE.glob("*.[ch]")))
    assert hashlib.sha256(source).hexdigest().encode() in read_object(), f"run `make fastpath`: {OBJECT} is out of date"


def test_the_structures_have_the_sizes_of_the_header() -> None:
    assert layout.SESSION.size == sum(size for _, size in fields("session")) == 48
    direction = fields("direction")
    assert layout.COUNTERS.size == 2 * sum(size for _, size in direction) == 128
    assert layout.SETTINGS.size == sum(size for _, size in fields("settings"))
    names = [name for name, _ in direction]
    indexes = (layout.PACKETS, layout.OCTETS, layout.LAST, layout.SPOOFED, layout.POLICED, layout.LIMITED, layout.READY)
    assert [names[index] for index in indexes] == "packets octets last spoofed policed limited ready".split()
    assert len(layout.NO_COUNTS) == 2 * len(names) and len(names) == layout.DOWN
    before = sum(size for name, size in direction[: layout.READY])
    assert layout.READY_OFFSETS == (before, layout.COUNTERS.size // 2 + before)


def test_the_totals_have_the_order_of_the_header() -> None:
    (body,) = re.findall(r"^enum total \{(.*?)^\};", HEADER, re.M | re.S)
    names = re.findall(r"^\t([A-Z_]+),", body, re.M)
    assert [name.upper() for name in layout.TOTALS] == names[:-1] and names[-1] == "TOTALS"


def test_the_flags_and_the_size_of_the_maps_are_the_header_s() -> None:
    found = {name: int(value, 0) for name, value in re.findall(r"^#define (\w+) (\w+)", HEADER, re.M)}
    assert found == {
        name: getattr(layout, name)
        for name in ("MAX_SESSIONS", "MAX_INTERFACES", "CHECK_SOURCE", "HAS_ROUTES", "ENABLED")
    }
