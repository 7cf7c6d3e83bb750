"""Processes in which isolated functions run. No Dask, so that they stay light."""

from __future__ import annotations

import os
import sys


def unavailable() -> str | None:
    """Return why functions cannot be isolated on this machine; None if they can.

    Only there, modules of this package other than ``calls`` can be imported.
    """
    if not sys.platform.startswith("linux"):
        return f"isolated functions need Linux, and this is {sys.platform}"
    if not os.path.exists("/proc/self/status"):
        return "isolated functions need the /proc file system"
    return None
