"""A BPF file system for servers in a network namespace: `ip netns exec` hides the machine's own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def bpf_file_system(directory: Path) -> Iterator[Path]:
    """Mount one, closed to all but root as the machine's is. Servers that are started meanwhile use it."""
    mount = directory / "bpf"
    mount.mkdir()
    subprocess.run(["mount", "-t", "bpf", "-o", "mode=700", "bpf", str(mount)], check=True)
    os.environ["L2TPNS_BPFFS"] = str(mount)
    try:
        yield mount
    finally:
        del os.environ["L2TPNS_BPFFS"]
        subprocess.run(["umount", str(mount)], check=True)
