"""How this process holds on to memory."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # <malloc.h>


def keep_freed_memory() -> bool:
    """Have the C library keep what is freed, for the next step's activations, instead of returning it to the system.

    By default glibc hands large blocks back at once, and each training step on a CPU faults all its activations in
    again, page by page. Returns whether it could be set.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # a C library other than glibc
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))
