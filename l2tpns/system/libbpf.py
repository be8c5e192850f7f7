"""Load eBPF programs and use their maps, by libbpf.so.1 (bpf(2)): a binding of the few functions that are used.

Each call takes microseconds, but for the load of an object, which takes a tenth of a second. Nothing here yields.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint32, c_void_p, create_string_buffer

from l2tpns.errors import L2tpnsError

LIBRARY = "libbpf.so.1"
INGRESS, EGRESS = 46, 47  # BPF_TCX_INGRESS, BPF_TCX_EGRESS (linux/bpf.h)


class BpfError(L2tpnsError):
    """The kernel, or this machine's libbpf, refuses something that the fast path needs. The text is for operators."""


class _Library:
    """The functions of libbpf, declared. Collects what it prints, for the text of the next error."""

    def __init__(self) -> None:
        try:
            library = ctypes.CDLL(LIBRARY, use_errno=True)
        except OSError:
            raise BpfError(f"{LIBRARY} is missing: install Debian's package libbpf1") from None
        pointers = ("bpf_object__open_mem", "bpf_object__find_map_by_name", "bpf_object__find_program_by_name")
        for name in pointers:
            getattr(library, name).restype = c_void_p
        library.bpf_object__open_mem.argtypes = [c_char_p, c_size_t, c_void_p]
        library.bpf_object__find_map_by_name.argtypes = [c_void_p, c_char_p]
        library.bpf_object__find_program_by_name.argtypes = [c_void_p, c_char_p]
        for name in ("bpf_object__load", "bpf_object__close", "bpf_map__fd", "bpf_program__fd"):
            getattr(library, name).argtypes = [c_void_p]
        library.bpf_object__close.restype = None
        library.bpf_map_update_elem.argtypes = [c_int, c_char_p, c_char_p, ctypes.c_uint64]
        library.bpf_map_lookup_elem.argtypes = [c_int, c_char_p, c_char_p]
        library.bpf_map_delete_elem.argtypes = [c_int, c_char_p]
        library.bpf_map_get_next_key.argtypes = [c_int, c_char_p, c_char_p]
        library.bpf_link_create.argtypes = [c_int, c_int, c_int, c_void_p]
        library.bpf_prog_test_run_opts.argtypes = [c_int, c_void_p]
        printer = ctypes.CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)
        self._silence = printer(lambda level, form, arguments: 0)  # kept: the library does not hold a reference
        library.libbpf_set_print.restype = c_void_p
        library.libbpf_set_print(self._silence)
        self.processors = int(library.libbpf_num_possible_cpus())
        self.call = library


_library: _Library | None = None


def library() -> _Library:
    """Return libbpf, loaded once. Raises BpfError if this machine has none."""
    global _library
    if _library is None:
        _library = _Library()
    return _library


def _refused(what: str, number: int = 0) -> BpfError:
    number = number or ctypes.get_errno()
    hint = ""
    if number == errno.EPERM:
        hint = "; CAP_BPF and CAP_NET_ADMIN are needed"
    elif number == errno.EINVAL and what.startswith("attach"):
        hint = "; TCX needs Linux 6.6"
    return BpfError(f"cannot {what}: {os.strerror(number)}{hint}")


class Map:
    """A map of a loaded object. Keys and values are octets as in the kernel's structures."""

    def __init__(self, name: str, fd: int) -> None:
        self.name, self._fd = name, fd
        self._call = library().call

    def put(self, key: bytes, value: bytes) -> None:
        """Insert or replace one entry, at once for all processors. Raises BpfError."""
        if self._call.bpf_map_update_elem(self._fd, key, value, 0):
            raise _refused(f"write to the map {self.name}")

    def delete(self, key: bytes) -> None:
        """Remove an entry, if it is there. Raises BpfError."""
        if self._call.bpf_map_delete_elem(self._fd, key) and ctypes.get_errno() != errno.ENOENT:
            raise _refused(f"delete from the map {self.name}")

    def get(self, key: bytes, size: int) -> bytes | None:
        """Return a value of `size` octets, None if there is no such entry. Raises BpfError."""
        value = create_string_buffer(size)
        if self._call.bpf_map_lookup_elem(self._fd, key, value):
            if ctypes.get_errno() == errno.ENOENT:
                return None
            raise _refused(f"read the map {self.name}")
        return value.raw

    def clear(self, key_size: int) -> None:
        """Remove all entries. Raises BpfError."""
        key = create_string_buffer(key_size)
        while not self._call.bpf_map_get_next_key(self._fd, None, key):
            self.delete(key.raw)

    def sums(self, entries: int) -> tuple[int, ...]:
        """Return the values of a per-CPU array of 64-bit numbers, each summed up over the processors."""
        size = 8 * library().processors
        found = []
        for index in range(entries):
            values = self.get(index.to_bytes(4, "little"), size) or b""
            found.append(sum(memoryview(values).cast("Q")))
        return tuple(found)

    def mapped(self, octets: int) -> mmap.mmap:
        """Return the values of an array with BPF_F_MMAPABLE as memory. Raises BpfError."""
        try:
            return mmap.mmap(self._fd, octets, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        except OSError as error:
            raise _refused(f"map the map {self.name} into memory", error.errno or 0) from None


class Link:
    """A program attached to an interface. It is detached when this is closed, or the process ends."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Program:
    """A program of a loaded object."""

    def __init__(self, name: str, fd: int) -> None:
        self.name, self.fd = name, fd

    def attach(self, interface: int, point: int) -> Link:
        """Attach the program at INGRESS or EGRESS of an interface, given by its index. Raises BpfError."""
        fd = library().call.bpf_link_create(self.fd, interface, point, None)
        if fd < 0:
            raise _refused(f"attach {self.name} to interface {interface}")
        return Link(fd)

    def run(self, packet: bytes) -> tuple[int, bytes]:
        """Run the program on a packet (BPF_PROG_TEST_RUN). Return its verdict and the packet after it. For tests."""
        out = create_string_buffer(len(packet) + 256)
        data = create_string_buffer(packet, len(packet))
        options = _TestRun(sz=ctypes.sizeof(_TestRun), repeat=1, data_size_in=len(packet), data_size_out=len(out))
        options.data_in = ctypes.cast(data, c_void_p)
        options.data_out = ctypes.cast(out, c_void_p)
        if library().call.bpf_prog_test_run_opts(self.fd, byref(options)):
            raise _refused(f"run {self.name}")
        return ctypes.c_int32(options.retval).value, out.raw[: options.data_size_out]


class _TestRun(ctypes.Structure):
    """Is struct bpf_test_run_opts of libbpf's bpf.h."""

    _fields_ = (
        ("sz", c_size_t),
        ("data_in", c_void_p),
        ("data_out", c_void_p),
        ("data_size_in", c_uint32),
        ("data_size_out", c_uint32),
        ("ctx_in", c_void_p),
        ("ctx_out", c_void_p),
        ("ctx_size_in", c_uint32),
        ("ctx_size_out", c_uint32),
        ("retval", c_uint32),
        ("repeat", c_int),
        ("duration", c_uint32),
        ("flags", c_uint32),
        ("cpu", c_uint32),
        ("batch_size", c_uint32),
    )


class Object:
    """A loaded object file: its programs and maps exist until it is closed."""

    def __init__(self, content: bytes) -> None:
        """Load an object file into the kernel. Raises BpfError."""
        call = library().call
        self._content = content  # libbpf reads it until it is closed
        self._object = call.bpf_object__open_mem(content, len(content), None)
        if not self._object:
            raise _refused("read the object file of the programs")
        if code := call.bpf_object__load(self._object):
            self.close()
            raise _refused("load the programs", -code)

    def map(self, name: str) -> Map:
        """Return a map by its name."""
        call = library().call
        return Map(name, call.bpf_map__fd(call.bpf_object__find_map_by_name(self._object, name.encode())))

    def program(self, name: str) -> Program:
        """Return a program by its name."""
        call = library().call
        return Program(name, call.bpf_program__fd(call.bpf_object__find_program_by_name(self._object, name.encode())))

    def close(self) -> None:
        """Unload the programs, unless they are attached, and forget the maps."""
        if self._object:
            library().call.bpf_object__close(self._object)
            self._object = None
