"""The fast path: programs in the kernel that carry the IP packets of sessions which need no Python code."""
