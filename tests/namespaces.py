"""A network that is cut for real: a server in a network namespace of Linux, with one link into it.

Only what comes over TCP goes through the link: the server's Unix socket is a file, and reached as ever. A cut changes
the hardware address that each end sends to. So packets vanish on both ways, and neither kernel hears of it: what is
noticed is noticed by keepalives and timeouts, as with a cable that is cut far away.
"""

import random
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pwd import struct_passwd
from urllib.parse import urlsplit

#: Hardware addresses of the two ends of a link, and one that nobody has.
OUTER, INNER, NOBODY = "02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:03"

#: The link's end in the namespace.
INNER_END = "inside"

#: How many subnets of four addresses there are in 198.18.0.0/15, which RFC 2544 sets aside for tests of networks.
SUBNETS = 2**15


@dataclass(frozen=True, slots=True)
class Namespace:
    """A network namespace, and the link into it: both are called `name`, and each end has an address."""

    name: str
    outer: str
    inner: str

    def entering(self, user: struct_passwd, command: Sequence[str]) -> list[str]:
        """The command that runs `command` in the namespace, as that user; only root may run it."""
        account = ["--setuid", str(user.pw_uid), "--setgid", str(user.pw_gid)]
        return ["nsenter", f"--net=/var/run/netns/{self.name}", *account, "--", *command]

    def cut(self) -> None:
        """From now on no packet arrives, and nobody is told."""
        self._send_to(NOBODY, NOBODY)

    def mend(self) -> None:
        """Packets arrive again; connections that nobody has given up yet go on."""
        self._send_to(INNER, OUTER)

    def _send_to(self, inner: str, outer: str) -> None:
        inwards, outwards = ("dev", self.name, "lladdr", inner), ("dev", INNER_END, "lladdr", outer)
        _ip("neighbour", "replace", self.inner, *inwards, "nud", "permanent")
        _ip("-netns", self.name, "neighbour", "replace", self.outer, *outwards, "nud", "permanent")


class NamespaceNetwork:
    """A database on a server in a namespace, over TCP; with the face of `Network`.

    Args:
        namespace: where the server is.
        url: the database, by the server's Unix socket.
    """

    def __init__(self, namespace: Namespace, url: str) -> None:
        parts = urlsplit(url)
        self.url = f"postgresql://{parts.username}@{namespace.inner}{parts.path}"
        self.cut = namespace.cut
        self.mend = namespace.mend


@contextmanager
def fresh_namespace() -> Iterator[Namespace]:
    """A namespace of one's own, whoever else has some; removed with its link in the end.

    Raises:
        OSError: this machine does not let us.
    """
    with ExitStack() as stack:
        namespace = _claim(stack)
        for end, address, at in (
            (namespace.name, namespace.outer, ()),
            (INNER_END, namespace.inner, ("-netns", namespace.name)),
        ):
            _ip(*at, "address", "add", f"{address}/30", "dev", end)
            _ip(*at, "link", "set", "dev", end, "up")
        namespace.mend()
        yield namespace


@cache
def namespaces_are_allowed() -> bool:
    """Whether this machine lets us make namespaces, and packets pass into them; tried once."""
    try:
        with fresh_namespace() as namespace:
            root = struct_passwd(("root", "", 0, 0, "", "/", ""))
            subprocess.run(namespace.entering(root, ["true"]), capture_output=True, check=True)
            # Nobody listens there: who is refused has been heard.
            socket.create_connection((namespace.inner, 9), timeout=5).close()
    except ConnectionRefusedError:
        return True
    except (OSError, subprocess.CalledProcessError):
        return False
    return False


def _claim(stack: ExitStack) -> Namespace:
    """The name is the claim, and the subnet goes with it: the kernel gives each name once."""
    refusals: list[OSError] = []
    for number in random.SystemRandom().sample(range(SUBNETS), 5):
        subnet = f"198.{18 + number // 2**14}.{number // 64 % 256}.{number % 64 * 4}"
        start, _, last = subnet.rpartition(".")
        namespace = Namespace(f"duepost-{number}", f"{start}.{int(last) + 1}", f"{start}.{int(last) + 2}")
        peer = ("peer", "name", INNER_END, "address", INNER, "netns", namespace.name)
        try:
            with ExitStack() as claimed:
                _ip("netns", "add", namespace.name)
                claimed.callback(_ip, "netns", "delete", namespace.name)
                _ip("link", "add", namespace.name, "address", OUTER, "type", "veth", *peer)
                claimed.callback(_ip, "link", "delete", namespace.name)
                stack.push(claimed.pop_all())
        except OSError as refusal:
            refusals.append(refusal)
        else:
            return namespace
    raise refusals[-1]


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
