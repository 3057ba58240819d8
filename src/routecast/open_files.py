"""Open files: each connection is one, and a process is allowed so many."""

import resource


def allow_open_files(needed: int) -> int:
    """Raise this process's limit of open files to `needed`, or as far as it may go; return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return needed
    if soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft
