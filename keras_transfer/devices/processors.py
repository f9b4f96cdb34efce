"""The processors of this machine."""

import os


def num_processors() -> int:
    """Number of processors that this process may use, as the system counts them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
