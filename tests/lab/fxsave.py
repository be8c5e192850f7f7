"""Start a program that sees only the floating point registers of FXSAVE: `python fxsave.py PROGRAM ARGUMENT ...`.

A user-mode-linux of 6.1 keeps the extended registers of its processes in a buffer that is too small for processors with
AMX, whose XSAVE area has 11,008 octets: it dies when its first process starts. It asks once whether the extended
registers can be read, ptrace(PTRACE_GETREGSET, NT_X86_XSTATE), and goes by FXSAVE where they cannot: a seccomp filter
refuses that one question. The other registers then stay where they are, in the host's process of each guest process.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

# For the guest's programs, as words of its kernel's command line. A signal clears the registers that FXSAVE leaves out,
# so nothing in the guest may use those of AVX.
ENVIRONMENT = (
    "GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX,-AVX2,-AVX512F,-AVX512VL,-AVX512BW,-AVX_Fast_Unaligned_Load",
    "OPENSSL_ia32cap=~0x1000000000000000:~0xd0230020",
)

_PTRACE, _PTRACE_GETREGSET, _NT_X86_XSTATE = 101, 0x4204, 0x202
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # linux/bpf_common.h
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | 19  # SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO with ENODEV
_NUMBER, _REQUEST, _ADDRESS = 0, 16, 32  # offsets in struct seccomp_data, of x86-64


def needed() -> bool:
    """Return True on a processor whose extended registers are too many for a user-mode-linux of 6.1."""
    with open("/proc/cpuinfo") as file:
        return any("amx_tile" in line.split() for line in file if line.startswith("flags"))


def refuse_xstate() -> None:
    """Install the filter in this thread. Raises OSError."""
    instructions = (
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_IF_EQUAL, 0, 5, _PTRACE),
        (_LOAD, 0, 0, _REQUEST),
        (_JUMP_IF_EQUAL, 0, 3, _PTRACE_GETREGSET),
        (_LOAD, 0, 0, _ADDRESS),
        (_JUMP_IF_EQUAL, 0, 1, _NT_X86_XSTATE),
        (_RETURN, 0, 0, _REFUSE),
        (_RETURN, 0, 0, _ALLOW),
    )
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *one) for one in instructions))
    program = struct.pack("@HP", len(instructions), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    for words in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.c_char_p(program), 0, 0),
    ):
        if libc.prctl(*words) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    refuse_xstate()
    os.execvp(sys.argv[1], sys.argv[1:])
