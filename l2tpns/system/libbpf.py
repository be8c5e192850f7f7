"""Load eBPF programs and use their maps, by libbpf.so.1 (bpf(2)): a binding of the few functions that are used.

Each call takes microseconds, but for the load of an object, which takes tens of milliseconds. Nothing here yields.

Only the load needs CAP_BPF. Whoever holds the descriptors may go on without it: with maps as they like, with links if
they have CAP_NET_ADMIN.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from collections.abc import Callable, Mapping
from ctypes import c_char_p, c_int, c_int32, c_size_t, c_uint32, c_uint64, c_void_p, create_string_buffer

from l2tpns.errors import L2tpnsError

LIBRARY = "libbpf.so.1"
INGRESS, EGRESS = 46, 47  # BPF_TCX_INGRESS, BPF_TCX_EGRESS (linux/bpf.h)
_WARNING = 0  # LIBBPF_WARN (bpf/libbpf.h)
_LIBRARY_ERRORS = 4000  # error numbers of libbpf's own: about the contents of a file
_LINE = 4096  # octets that are kept of what libbpf prints in one call
_LINES = 40  # of them, the last ones
_GSO_SIZE, _CONTEXT_SIZE = 176, 192  # of struct __sk_buff (linux/bpf.h)

_SIGNATURES: dict[str, tuple[type | None, tuple[type, ...]]] = {
    "libbpf_num_possible_cpus": (c_int, ()),
    "bpf_object__open_mem": (c_void_p, (c_char_p, c_size_t, c_void_p)),
    "bpf_object__load": (c_int, (c_void_p,)),
    "bpf_object__close": (None, (c_void_p,)),
    "bpf_object__find_map_by_name": (c_void_p, (c_void_p, c_char_p)),
    "bpf_object__find_program_by_name": (c_void_p, (c_void_p, c_char_p)),
    "bpf_map__fd": (c_int, (c_void_p,)),
    "bpf_program__fd": (c_int, (c_void_p,)),
    "bpf_map_update_elem": (c_int, (c_int, c_char_p, c_char_p, c_uint64)),
    "bpf_map_lookup_elem": (c_int, (c_int, c_char_p, c_char_p)),
    "bpf_map_delete_elem": (c_int, (c_int, c_char_p)),
    "bpf_map_get_next_key": (c_int, (c_int, c_char_p, c_char_p)),
    "bpf_link_create": (c_int, (c_int, c_int, c_int, c_void_p)),
    "bpf_map__reuse_fd": (c_int, (c_void_p, c_int)),
    "bpf_link_update": (c_int, (c_int, c_int, c_void_p)),
    "bpf_link_detach": (c_int, (c_int,)),
    "bpf_obj_pin": (c_int, (c_int, c_char_p)),
    "bpf_obj_get": (c_int, (c_char_p,)),
    "bpf_prog_test_run_opts": (c_int, (c_int, c_void_p)),
}


class BpfError(L2tpnsError):
    """The kernel, or this machine's libbpf, refuses something that eBPF programs need. The text is for operators.

    `detail` has the last lines of what libbpf printed about it, for instance the kernel's reason to refuse a program.
    """

    def __init__(self, text: str, detail: str = "", code: int = 0) -> None:
        super().__init__(text)
        self.detail = detail
        self.code = code  # errno


class _Library:
    """The functions of libbpf, by their names. What it prints is kept for the detail of the next error."""

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL(LIBRARY, use_errno=True)
        except OSError:
            raise BpfError(f"{LIBRARY} is missing: install Debian's package libbpf1") from None
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(self._library, name)
            function.restype, function.argtypes = result, arguments
        self._lines: list[str] = []
        self._format = ctypes.CDLL(None).vsnprintf
        self._format.argtypes = (c_char_p, c_size_t, c_char_p, c_void_p)
        # Kept here, for libbpf holds no reference. A va_list is passed as a pointer on the processors that Debian has.
        self._printer = ctypes.CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)(self._keep)
        self._library.libbpf_set_print.restype = c_void_p
        self._library.libbpf_set_print(self._printer)
        self.processors: int = self.call("libbpf_num_possible_cpus")

    def call(self, name: str, *arguments: object) -> int:
        """Call a function. Return its result: a descriptor, a pointer, or a negative number, then errno says why."""
        result: int | None = getattr(self._library, name)(*arguments)
        return result or 0

    def refusal(self, what: str, number: int = 0) -> BpfError:
        """Return the error of the last call, or of an error number."""
        detail, self._lines = "\n".join(self._lines), []
        number = number or ctypes.get_errno()
        why = "it is damaged" if number >= _LIBRARY_ERRORS else os.strerror(number)
        return BpfError(f"cannot {what}: {why}{_hint(number)}", detail, number)

    def _keep(self, level: int, form: bytes, arguments: int) -> int:
        if level == _WARNING:
            text = create_string_buffer(_LINE)
            self._format(text, _LINE, form, arguments)
            self._lines = [*self._lines, *text.value.decode(errors="replace").splitlines()][-_LINES:]
        return 0


def _hint(number: int) -> str:
    if number in (errno.EPERM, errno.EACCES):
        return "; CAP_BPF and CAP_NET_ADMIN are needed"
    if number == errno.ENOSYS:
        return "; the kernel is built without bpf(2)"
    return ""


_library: _Library | None = None


def library() -> _Library:
    """Return libbpf, loaded once. Raises BpfError if this machine has none."""
    global _library
    if _library is None:
        _library = _Library()
    return _library


def pin(fd: int, path: str) -> None:
    """Have a map or a link outlive this process, by a file in a BPF file system. Raises BpfError."""
    if library().call("bpf_obj_pin", fd, os.fsencode(path)):
        raise library().refusal(f"keep {path}")


def pinned(path: str) -> int:
    """Return a descriptor of a map or a link that was pinned. Raises BpfError."""
    fd = library().call("bpf_obj_get", os.fsencode(path))
    if fd < 0:
        raise library().refusal(f"open {path}")
    return fd


class Map:
    """A map of a loaded object. Keys and values are octets as in the kernel's structures, of the sizes that it has."""

    def __init__(self, name: str, fd: int) -> None:
        self.name, self.fd = name, fd
        self._call: Callable[..., int] = library().call

    def put(self, key: bytes, value: bytes) -> None:
        """Insert or replace one entry, at once for all processors. Raises BpfError."""
        if self._call("bpf_map_update_elem", self.fd, key, value, 0):
            raise library().refusal(f"write to the map {self.name}")

    def delete(self, key: bytes) -> None:
        """Remove an entry, if it is there. Raises BpfError."""
        if self._call("bpf_map_delete_elem", self.fd, key) and ctypes.get_errno() != errno.ENOENT:
            raise library().refusal(f"delete from the map {self.name}")

    def get(self, key: bytes, size: int) -> bytes | None:
        """Return a value of `size` octets, None if there is no such entry. Raises BpfError."""
        value = create_string_buffer(size)
        if not self._call("bpf_map_lookup_elem", self.fd, key, value):
            return value.raw
        if ctypes.get_errno() == errno.ENOENT:
            return None
        raise library().refusal(f"read the map {self.name}")

    def keys(self, size: int) -> list[bytes]:
        """Return all keys, of `size` octets each. Entries must not be removed meanwhile. Raises BpfError."""
        found: list[bytes] = []
        key = create_string_buffer(size)
        while not self._call("bpf_map_get_next_key", self.fd, found[-1] if found else None, key):
            found.append(key.raw)
        if ctypes.get_errno() != errno.ENOENT:
            raise library().refusal(f"read the map {self.name}")
        return found

    def entries(self, key_size: int, value_size: int) -> dict[bytes, bytes]:
        """Return all entries. Raises BpfError."""
        values = {key: self.get(key, value_size) for key in self.keys(key_size)}
        return {key: value for key, value in values.items() if value is not None}

    def clear(self, size: int) -> None:
        """Remove all entries, whose keys have `size` octets. Raises BpfError."""
        for key in self.keys(size):
            self.delete(key)

    def sums(self, entries: int) -> tuple[int, ...]:
        """Return the values of a per-CPU array of 64-bit numbers, each summed up over the processors."""
        size = 8 * library().processors
        found = (self.get(struct.pack("=I", index), size) or b"" for index in range(entries))
        return tuple(sum(memoryview(values).cast("Q")) for values in found)

    def mapped(self, octets: int) -> mmap.mmap:
        """Return the values of an array with BPF_F_MMAPABLE as memory, in whole pages. Raises BpfError.

        It is read and written without system calls.
        """
        try:
            return mmap.mmap(self.fd, octets, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        except OSError as error:
            raise library().refusal(f"map the map {self.name} into memory", error.errno or 0) from None


class Link:
    """A program attached to an interface.

    It is detached when this is closed, or the process ends, unless the link is pinned.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def update(self, program: Program) -> None:
        """Replace the program: each packet meets one of the two. Raises BpfError, also if the interface is gone."""
        if library().call("bpf_link_update", self.fd, program.fd, None):
            raise library().refusal(f"replace the program {program.name}")

    def detach(self) -> None:
        """Detach the program, pinned or not, and wait for the packets that it has begun with. It counts no more."""
        if self.fd >= 0:
            library().call("bpf_link_detach", self.fd)  # an error: its interface is gone
        self.close()

    def close(self) -> None:
        """Detach the program, unless the link is pinned."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Program:
    """A program of a loaded object."""

    def __init__(self, name: str, fd: int) -> None:
        self.name, self.fd = name, fd

    def attach(self, interface: int, point: int) -> Link:
        """Attach the program at INGRESS or EGRESS of an interface, given by its index. Raises BpfError."""
        fd = library().call("bpf_link_create", self.fd, interface, point, None)
        if fd < 0:
            raise library().refusal(f"attach {self.name} to interface {interface}")
        return Link(fd)

    def run(self, packet: bytes, gso_size: int = 0) -> tuple[int, bytes]:
        """Run the program on a packet (BPF_PROG_TEST_RUN). Return its verdict and the packet after it.

        `gso_size` makes it a super-packet of segments with so many octets of data. Only tests use this.
        """
        context = bytearray(_CONTEXT_SIZE)
        struct.pack_into("=I", context, _GSO_SIZE, gso_size)
        given, result = create_string_buffer(packet, len(packet)), create_string_buffer(len(packet) + 256)
        ctx = create_string_buffer(bytes(context), _CONTEXT_SIZE)
        options = _TestRun(
            sz=ctypes.sizeof(_TestRun),
            data_in=ctypes.addressof(given),
            data_out=ctypes.addressof(result),
            data_size_in=len(packet),
            data_size_out=len(result),
            ctx_in=ctypes.addressof(ctx),
            ctx_size_in=_CONTEXT_SIZE,
            repeat=1,
        )
        if library().call("bpf_prog_test_run_opts", self.fd, ctypes.byref(options)):
            raise library().refusal(f"run {self.name}")
        return c_int32(options.retval).value, result.raw[: options.data_size_out]


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
    """A loaded object file. Programs and maps live until it is closed, and as long as links and memory made of them."""

    def __init__(self, content: bytes, maps: Mapping[str, int] | None = None) -> None:
        """Load an object file into the kernel, with the maps that exist already, given by their descriptors.

        Such a map must be of the kind that the object has under that name. Raises BpfError.
        """
        self._call = library().call
        self._content = content  # libbpf reads it until the object is closed
        self._object = self._call("bpf_object__open_mem", content, len(content), None)
        if not self._object:
            raise library().refusal("read the object file of the eBPF programs")
        for name, fd in (maps or {}).items():
            found = self._call("bpf_object__find_map_by_name", self._object, name.encode())
            if not found or self._call("bpf_map__reuse_fd", found, fd):
                refusal = library().refusal(f"go on with the map {name}")
                self.close()
                raise refusal
        if self._call("bpf_object__load", self._object):
            refusal = library().refusal("load the eBPF programs")
            self.close()
            raise refusal

    def map(self, name: str) -> Map:
        """Return a map by its name. Raises KeyError."""
        found = self._call("bpf_object__find_map_by_name", self._object, name.encode())
        if not found:
            raise KeyError(name)
        return Map(name, self._call("bpf_map__fd", found))

    def program(self, name: str) -> Program:
        """Return a program by its name. Raises KeyError."""
        found = self._call("bpf_object__find_program_by_name", self._object, name.encode())
        if not found:
            raise KeyError(name)
        return Program(name, self._call("bpf_program__fd", found))

    def close(self) -> None:
        """Unload the programs, unless they are attached, and the maps. No Map or Program may be used afterwards."""
        if self._object:
            self._call("bpf_object__close", self._object)
            self._object = 0
