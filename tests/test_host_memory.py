import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource, sys
from clp_jax import host_memory

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
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=False
    )
    if done.returncode == 77:
        pytest.skip("the C library is not glibc")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_freed_memory_is_used_again_without_the_kernel():
    # 64 MB are 16,384 pages, or 32 large ones where the kernel gives those.
    assert page_faults("leave") >= 4 * 32
    assert page_faults("keep") < 16
