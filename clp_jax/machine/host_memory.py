"""Memory of the host, where XLA computes on it."""

import ctypes
import sys

# glibc's <malloc.h>.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
# Linux's <sys/mman.h>, and the size of the pages that it asks for.
_MADV_HUGEPAGE, _HUGE_PAGE = 14, 2**21
# Bytes of the heap that have them; above the trim threshold, `free` would give them back.
_HUGE = 3 * 2**29


def keep_freed_memory() -> bool:
    """Makes the C library keep freed memory, in huge pages, and not give it back to the kernel.

    XLA on a CPU allocates the temporaries of a program anew at every call. Large ones come from
    and go to the kernel each time, which fills every page with zeros: 75 MB in an update of the
    model of gin/briefs.gin, a quarter of its time (benchmarks/NOTES.md). Huge pages save 9 % of
    a step. To be called before XLA starts its threads, which would otherwise have pools of their
    own.

    Returns:
      Whether freed memory is kept: on Linux with glibc. Huge pages depend on the kernel's settings.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        libc = ctypes.CDLL("libc.so.6")
        mallopt = libc.mallopt
    except (OSError, AttributeError):  # another C library
        return False
    settings = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 2**28))
    done = [mallopt(name, value) == 1 for name, value in settings]
    _use_huge_pages(libc)
    return all(done)


def _use_huge_pages(libc: ctypes.CDLL) -> None:
    """Makes pages of the heap that are used from now on huge ones, where the system allows it."""
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
    libc.free.argtypes = (ctypes.c_void_p,)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    if start := libc.malloc(_HUGE):
        skipped = -start % _HUGE_PAGE
        libc.madvise(start + skipped, _HUGE - _HUGE_PAGE, _MADV_HUGEPAGE)
        libc.free(start)
