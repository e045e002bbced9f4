"""Memory of the host, where XLA computes on it."""

import ctypes
import sys

# glibc's <malloc.h>.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> bool:
    """Makes the C library keep freed memory, in place of giving it back to the kernel.

    XLA on a CPU allocates the temporaries of a program anew at every call. Large ones come from
    and go to the kernel each time, which fills every page with zeros: 75 MB in an update of the
    model of gin/briefs.gin, a quarter of its time (benchmarks/NOTES.md). To be called before XLA
    starts its threads, which would otherwise have pools of their own.

    Returns:
      Whether it was done: on Linux with glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return False
    settings = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 2**28))
    done = [mallopt(name, value) == 1 for name, value in settings]
    return all(done)
