"""What Python's standard library does not offer of Linux."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import weakref
from ctypes import c_int, c_size_t, c_void_p
from pickle import PickleBuffer

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = c_void_p
_libc.mmap.argtypes = (c_void_p, c_size_t, c_int, c_int, c_int, ctypes.c_long)
_libc.munmap.argtypes = (c_void_p, c_size_t)
_libc.madvise.argtypes = (c_void_p, c_size_t, c_int)

_FAILED = c_void_p(-1).value
#: ``madvise``: map all pages at once instead of one fault after the other. Since Linux 5.14.
_MADV_POPULATE_READ = 22
_IOLBF = 1  # of <stdio.h>
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def memory_file() -> int:
    """Return the descriptor of new memory that no name refers to."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("handoff")
    # Python was built for an old C library, as conda's is.
    fd: int = _libc.memfd_create(b"handoff", 1)
    if fd < 0:
        raise _error()
    return fd


def mapped(fd: int, *, shared: bool) -> tuple[int, memoryview]:
    """Map a file for reading and writing; return its address and its content.

    Unlike ``mmap.mmap``, this keeps no descriptor open. `shared`: what is written here is seen by
    whoever maps the file.
    """
    size = os.fstat(fd).st_size
    flags = mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE
    address = _libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, fd, 0)
    if address == _FAILED:
        raise _error()
    _libc.madvise(address, size, _MADV_POPULATE_READ)  # if it can
    content = (ctypes.c_ubyte * size).from_address(address)
    weakref.finalize(content, _libc.munmap, address, size).atexit = False
    return address, PickleBuffer(content).raw()


def address_of(buffer: memoryview) -> int | None:
    """Return the address of a buffer; None if it is read only."""
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    except TypeError:
        return None


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, which is the process `parent`."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of descendants whose parents end."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def return_free_memory() -> None:
    """Give free memory of the C library's heap back to the system."""
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)


def write_lines() -> None:
    """Have native code write what it prints line by line, also where that is no terminal."""
    stdout = c_void_p.in_dll(_libc, "stdout")
    _libc.setvbuf(stdout, None, _IOLBF, c_size_t(0))


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
