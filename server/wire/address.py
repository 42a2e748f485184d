"""Where the pool listens for one worker."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from plait.server.wire.curve import KeyPair

Transport = Literal["ipc", "tcp"]


@dataclass(frozen=True, slots=True)
class Address:
    """A ZeroMQ endpoint, written transport://target.

    ipc: target is the path of a socket on this machine; the folder's permissions protect it.
    tcp: target is host:port; until it is bound, also host:* for any free port or host:LOW-HIGH for
        one of these. The pool's end has keys (curve.py), which str() leaves out.
    """

    transport: Transport
    target: str
    keys: KeyPair | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return f"{self.transport}://{self.target}"

    def remove(self) -> None:
        """Remove what a closed socket leaves in the file system."""
        if self.transport == "ipc":
            Path(self.target).unlink(missing_ok=True)


def parse_address(text: str) -> Address:
    """Return the address that str() wrote; raise ValueError if it is none."""
    transport, separator, target = text.partition("://")
    for known in get_args(Transport):
        if transport == known and separator and target:
            return Address(known, target)
    raise ValueError(f"{text!r} is not an address: ipc://PATH or tcp://HOST:PORT")
