"""A variant of a benchmark for its tests; each of its processes imports this file anew, so it imports little."""

import os


def make(setting, device):
    """Make a variant whose step takes the time that the setting states."""
    if setting.broken:
        raise setting.broken
    return lambda: setting.seconds, {
        "rank": os.environ["RANK"],
        "world": os.environ["WORLD_SIZE"],
        "pages": os.environ["PAGES"],
        "pid": os.getpid(),
    }
