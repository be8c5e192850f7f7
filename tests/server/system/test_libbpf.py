"""libbpf.py with the shipped programs: what maps hold, and what an operator reads when the kernel refuses something."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from l2tpns.dataplane.fastpath import layout
from l2tpns.dataplane.fastpath.programs import read_object
from l2tpns.system.libbpf import INGRESS, BpfError, Object
from tests.lab.netns import is_root

pytestmark = pytest.mark.skipif(not is_root(), reason="needs root for the kernel programs")

NO_INTERFACE = 0x7FFFFFFF


@pytest.fixture
def programs() -> Iterator[Object]:
    programs = Object(read_object())
    yield programs
    programs.close()


def test_an_entry_is_replaced_read_and_removed_and_a_missing_one_is_no_error(programs: Object) -> None:
    addresses = programs.map("addresses")
    addresses.put(b"\x0a\0\0\1", b"\0\1\0\1")
    addresses.put(b"\x0a\0\0\1", b"\0\1\0\2")
    assert addresses.get(b"\x0a\0\0\1", 4) == b"\0\1\0\2"
    addresses.delete(b"\x0a\0\0\1")
    addresses.delete(b"\x0a\0\0\1")
    assert addresses.get(b"\x0a\0\0\1", 4) is None


@pytest.mark.parametrize(("name", "prefix"), [("addresses", b""), ("routes", b"\x20\0\0\0")])
def test_keys_are_listed_and_a_map_is_cleared(programs: Object, name: str, prefix: bytes) -> None:
    table, size = programs.map(name), len(prefix) + layout.ADDRESS_SIZE
    keys = {prefix + bytes((10, 0, 0, last)) for last in range(50)}
    for key in keys:
        table.put(key, bytes(4))
    assert sorted(table.keys(size)) == sorted(keys)
    table.clear(size)
    assert table.keys(size) == []


def test_mapped_memory_is_what_the_kernel_has(programs: Object) -> None:
    counters = programs.map("counters")
    slot = (3).to_bytes(4, "little")
    with counters.mapped(layout.MAX_SESSIONS * layout.COUNTERS.size) as memory:
        memory[3 * layout.COUNTERS.size] = 77
        found = counters.get(slot, layout.COUNTERS.size)
        assert found is not None and found[0] == 77


def test_an_unknown_name_is_a_key_error(programs: Object) -> None:
    with pytest.raises(KeyError):
        programs.map("nothing")
    with pytest.raises(KeyError):
        programs.program("nothing")


def test_a_refusal_names_what_was_tried_and_why(programs: Object) -> None:
    with pytest.raises(BpfError, match="cannot write to the map counters: Argument list too long"):
        programs.map("counters").put(layout.MAX_SESSIONS.to_bytes(4, "little"), bytes(layout.COUNTERS.size))
    with pytest.raises(BpfError, match=f"cannot attach fast_up to interface {NO_INTERFACE}: "):
        programs.program("fast_up").attach(NO_INTERFACE, INGRESS)


def test_a_damaged_object_file_is_refused_with_what_libbpf_says_about_it() -> None:
    with pytest.raises(BpfError, match="cannot read the object file of the eBPF programs: it is damaged") as refused:
        Object(b"\x7fELF" + bytes(200))
    assert "ELF" in refused.value.detail
