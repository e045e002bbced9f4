import pathlib
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource, sys
from clp_jax.machine import host_memory
if sys.argv[1] == "keep" and not host_memory.keep_freed_memory():
    sys.exit(77)
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def touch(size):
    memory = libc.malloc(size)
    libc.memset(memory, 1, size)
    libc.free(memory)

touch(2**26)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    touch(2**26)
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
address, here, huge = libc.malloc(2**26) + 2**25, False, 0
with open("/proc/self/smaps") as file:
    for line in file:
        name, *values = line.split()
        if not name.endswith(":"):
            start, end = (int(each, 16) for each in name.split("-"))
            here = start <= address < end
        elif here and name == "VmFlags:":
            huge = int("hg" in values)
print(faults, huge)
"""
HUGE_PAGES = pathlib.Path("/sys/kernel/mm/transparent_hugepage")


def touched(how):
    """Page faults of memory that is used again, and whether it may be in huge pages."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=False
    )
    if done.returncode == 77:
        pytest.skip("the C library is not glibc")
    assert done.returncode == 0, done.stderr
    return tuple(map(int, done.stdout.split()))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_freed_memory_is_used_again_without_the_kernel():
    # 64 MB are 16,384 pages, or 32 large ones where the kernel gives those.
    assert touched("leave")[0] >= 4 * 32
    assert touched("keep")[0] < 16


@pytest.mark.skipif(not HUGE_PAGES.exists(), reason="the kernel has no huge pages")
def test_memory_is_in_huge_pages():
    assert touched("leave")[1] == 0
    assert touched("keep")[1] == 1
