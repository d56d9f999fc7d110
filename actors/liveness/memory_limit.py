"""A bound on what one email may take: without it a single template brings down every process of the machine."""

import resource
from pathlib import Path

#: What the kernel says of this process; its sixth number is data, in pages.
_STATM = Path("/proc/self/statm")


def limit(mebibytes: int) -> None:
    """Lets this process take so much memory beyond what it has now; whatever asks for more gets a MemoryError.

    Does nothing for 0, nor where the kernel does not count (it must be Linux).
    """
    if not mebibytes or not _STATM.exists():
        return
    data = int(_STATM.read_text().split()[5]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = data + mebibytes * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
