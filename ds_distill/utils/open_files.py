"""The limit of files, memory maps and connections that a process may hold open."""

import resource

OTHERS = 2048  # what libraries hold open, and the files of several splits of prepared tokens


def allow_open_files(needed: int) -> None:
    """Raise this process's soft limit, as far as the hard one permits, where it leaves no room for so many.

    A memory map keeps its file open, and each connection to another rank counts as a file.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = needed + OTHERS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
