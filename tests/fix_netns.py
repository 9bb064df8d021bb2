"""Gives `far`: a network namespace behind a router, both the test's own, in which packets can be made to vanish.

    this host ── veth ── router ── veth ── far          far.address, far.here: the two ends

    with far.entered(): …      what this thread starts there lives in it; Unix sockets are the same everywhere
    far.vanish() / far.heal()  a blackhole route in the router each way: dropped without a word to either end

Needs root, `ip` (iproute2) and veth; a machine without them skips loudly. Nothing of it is seen by the machine's own network
but a route to four addresses of 198.18.0.0/15, which is reserved for measuring networks (RFC 2544).
"""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_CLONE_NEWNET = 0x40000000
TRIES = 20


class Far:
    """The namespace, its router, and the link to it."""

    def __init__(self) -> None:
        self._name = f"wq{os.getpid()}"
        self._net = ""
        self._holes: list[str] = []

    @property
    def address(self) -> str:
        """Where the namespace is reached from here."""
        return f"{self._net}.6"

    @property
    def here(self) -> str:
        """Where it reaches us."""
        return f"{self._net}.1"

    def build(self) -> None:
        """Raises subprocess.CalledProcessError where that is not possible."""
        name = self._name
        for space in (f"{name}r", f"{name}f"):
            _ip("netns", "add", space)
        _ip("link", "add", f"{name}h", "type", "veth", "peer", "name", "near", "netns", f"{name}r")
        _ip("-n", f"{name}r", "link", "add", "far", "type", "veth", "peer", "name", "eth0", "netns", f"{name}f")
        for attempt in range(1, TRIES + 1):
            self._net = f"198.{random.randint(18, 19)}.{random.randrange(256)}"  # each run of the tests its own
            try:
                _ip("addr", "add", f"{self.here}/30", "dev", f"{name}h")
                _ip("link", "set", f"{name}h", "up")
                _ip("route", "add", f"{self._net}.4/30", "via", f"{self._net}.2")
                break
            except subprocess.CalledProcessError:
                if attempt == TRIES:
                    raise
                _ip("addr", "flush", "dev", f"{name}h")
        for space, device, address in (("r", "near", "2"), ("r", "far", "5"), ("f", "eth0", "6")):
            _ip("-n", name + space, "addr", "add", f"{self._net}.{address}/30", "dev", device)
            _ip("-n", name + space, "link", "set", device, "up")
            _ip("-n", name + space, "link", "set", "lo", "up")
        _ip("-n", f"{name}f", "route", "add", "default", "via", f"{self._net}.5")
        with _entered(f"{name}r"):
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")

    def remove(self) -> None:
        for words in (("link", "del", f"{self._name}h"), ("netns", "del", f"{self._name}r"), ("netns", "del", f"{self._name}f")):
            subprocess.run(["ip", *words], capture_output=True, check=False, timeout=10)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """This thread, and what it starts meanwhile, is in the namespace."""
        with _entered(f"{self._name}f"):
            yield

    def vanish(self) -> None:
        """Packets vanish in both directions from now on."""
        for address in (self.address, self.here):
            _ip("-n", f"{self._name}r", "route", "add", "blackhole", f"{address}/32")
            self._holes.append(address)

    def heal(self) -> None:
        """They pass again."""
        while self._holes:
            _ip("-n", f"{self._name}r", "route", "del", "blackhole", f"{self._holes.pop()}/32")


@pytest.fixture
def far() -> Iterator[Far]:
    """A Far, as described above."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("A BLACK HOLE FOR PACKETS IS NOT TESTED: it needs root and the program `ip` (iproute2)")
    found = Far()
    try:
        try:
            found.build()
        except (subprocess.CalledProcessError, OSError) as error:
            said = getattr(error, "stderr", b"") or b""
            pytest.skip(f"A BLACK HOLE FOR PACKETS IS NOT TESTED: no network namespaces here: {error} {said.decode()}")
        yield found
    finally:
        found.remove()


@contextmanager
def _entered(name: str) -> Iterator[None]:
    """os.setns is in Python 3.12."""
    libc = ctypes.CDLL(None, use_errno=True)
    back = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{name}", os.O_RDONLY)

    def enter(space: int) -> None:
        if libc.setns(space, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns to {name}")

    try:
        enter(there)
        yield
    finally:
        enter(back)
        os.close(there)
        os.close(back)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=10)
