"""The processor cores that this process may use."""

import os


def usable_cores() -> int:
    """Returns the number of cores that this process may use, which its affinity may limit."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
