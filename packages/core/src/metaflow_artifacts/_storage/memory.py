"""Memory for content that is held while it is sent."""

from __future__ import annotations

import contextlib
import mmap

__all__ = ["memory"]


def memory(size: int) -> mmap.mmap:
    """A buffer whose memory goes back to the system when it is freed; malloc would keep some for each thread."""
    buffer = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # Advice only: kernels without huge pages refuse it.
        with contextlib.suppress(OSError):
            buffer.madvise(mmap.MADV_HUGEPAGE)
    return buffer
