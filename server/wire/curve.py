"""Who may connect, and what nobody else can read: CurveZMQ for connections that leave the machine.

The pool makes a key pair for each socket, the worker's machine one for each worker; secret keys
stay where they were made. Public keys are exchanged by whoever launches the worker.
"""

from __future__ import annotations

from typing import Any

import zmq
import zmq.asyncio
import zmq.auth.asyncio
from msgspec import Struct


class KeyPair(Struct, frozen=True):
    """The two keys of one end, in Z85 text."""

    public: str
    secret: str

    def __repr__(self) -> str:
        return f"KeyPair(public={self.public!r})"  # the secret stays out of logs and tracebacks


class Credentials(Struct, frozen=True):
    """What a worker shows and whom it trusts."""

    server_key: str  # public, of the pool's socket
    own: KeyPair


def new_key_pair() -> KeyPair:
    """Return fresh keys."""
    public, secret = zmq.curve_keypair()
    return KeyPair(public.decode("ascii"), secret.decode("ascii"))


def authenticate_clients(socket: zmq.Socket[Any], keys: KeyPair) -> None:
    """Have a socket, before it is bound, take only peers that a `KeyRing` admits to these keys."""
    socket.curve_server = True
    socket.curve_secretkey = keys.secret.encode("ascii")
    socket.zap_domain = keys.public.encode("ascii")


def authenticate(socket: zmq.Socket[Any], credentials: Credentials) -> None:
    """Have a socket, before it connects, show its keys and trust one server alone."""
    socket.curve_serverkey = credentials.server_key.encode("ascii")
    socket.curve_publickey = credentials.own.public.encode("ascii")
    socket.curve_secretkey = credentials.own.secret.encode("ascii")


class KeyRing:
    """Says which client may connect to which socket of a context. Used on one event loop."""

    def __init__(self, context: zmq.asyncio.Context) -> None:
        """Watch the connections of a context; it can have one such watcher."""
        self._admitted: dict[str, str] = {}
        self._authenticator = zmq.auth.asyncio.AsyncioAuthenticator(context)
        self._authenticator.start()

    def admit(self, server_key: str, client_key: str) -> None:
        """Let one client, and nobody else, connect to the socket with this public key."""
        self._admitted[server_key] = client_key
        self._authenticator.configure_curve_callback(server_key, self)

    def forget(self, server_key: str) -> None:
        """Let nobody connect to that socket any more."""
        self._admitted.pop(server_key, None)

    def callback(self, domain: str, key: bytes) -> bool:
        """Answer the authenticator, which calls it by this name."""
        return self._admitted.get(domain) == key.decode("ascii")

    def close(self) -> None:
        """Stop watching."""
        self._authenticator.stop()
