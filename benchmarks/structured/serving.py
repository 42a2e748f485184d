"""The servers that are measured: started here, or found at a URL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import httpx

from benchmarks.servers import SERVERS, Venvs, running

# llama-server draws from 40 tokens, top_p 0.95 and min_p 0.05 unless told otherwise, the others
# from the whole distribution.
UNTRUNCATED = {"llama": ("--top-k", "0", "--top-p", "1", "--min-p", "0")}


@dataclass(frozen=True, slots=True)
class Server:
    """A server that takes requests."""

    name: str
    base_url: str
    model: str
    version: str = ""
    api_key: str = ""

    @property
    def headers(self) -> dict[str, str]:
        """What every request carries."""
        return {"authorization": f"Bearer {self.api_key}"} if self.api_key else {}


@contextmanager
def found(url: str, model: str | None, api_key: str) -> Iterator[Server]:
    """Yield a server that runs already; its first model, if none is named.

    Raises:
        httpx.HTTPError: it can't be reached, or does not list its models.
    """
    server = Server(url, url, model or "", api_key=api_key)
    if not model:
        response = httpx.get(f"{url}/v1/models", headers=server.headers).raise_for_status()
        server = replace(server, model=response.json()["data"][0]["id"])
    yield server


@contextmanager
def started(name: str, places: Venvs) -> Iterator[Server]:
    """Start a server, and stop it in the end.

    Raises:
        NotInstalled, NotReady: as `benchmarks.servers` says.
    """
    command = SERVERS[name](places)
    whole = UNTRUNCATED.get(name.partition("-")[0], ())
    command = replace(command, argv=[*command.argv, *whole])
    with running(command, places.files / f"{name}.log") as server:
        yield Server(name, server.base_url, server.model, command.version)
