"""Are requests lost while pods are replaced? Real servers, probed and stopped as Kubernetes does.

    python -m benchmarks.rolling_restart --rounds 3

The times are those of deploy/kubernetes/deployment.yaml, which the chart has, too. A new server
gets requests once its probe has passed, then the old one is deleted: proxies go on sending to it
for `--lag-s`, preStop waits, SIGTERM arrives, and SIGKILL if it has not ended within the grace
period. All the while requests come at a steady rate, half of them over new connections, to any
server that is thought ready; some are so long that the end of their server cuts into them. Exit
code 1 when one is lost.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml
from pydantic import Field

from benchmarks.client import TIMEOUT, ServerFault, ask, connect
from benchmarks.command_line import Command, command_config, run_command
from benchmarks.machine import ROOT, this_machine
from benchmarks.servers import Command as ServerCommand
from benchmarks.servers import Running, Venvs, plait, running

DEPLOYMENT = ROOT / "deploy" / "kubernetes" / "deployment.yaml"
ANSWERED = "answered"
LONG_EVERY = 20  # so manieth request is a long one


class RollingRestartOptions(Command):
    """Count the requests that are lost while servers are replaced one after the other."""

    model_config = command_config("benchmarks.rolling_restart")

    model: str = Field("smollm2-135m-instruct", description="Built-in name, file or folder.")
    rounds: int = Field(3, ge=1, description="Servers that are replaced.")
    rate: float = Field(20.0, gt=0, description="Requests a second.")
    tokens: int = Field(4, ge=1, description="Of most answers.")
    long_tokens: int = Field(300, ge=1, description=f"Of each {LONG_EVERY}th answer.")
    lag_s: float = Field(5.0, ge=0, description="Proxies know of a deletion so much later.")


@dataclass(frozen=True, slots=True)
class Times:
    """What the manifest says, in seconds."""

    probe_period: float
    probe_timeout: float
    pre_stop: float
    grace: float

    @classmethod
    def read(cls, path: Path) -> Times:
        """Read the file of a Deployment with one container."""
        return cls.of(yaml.safe_load(path.read_text()))

    @classmethod
    def of(cls, deployment: dict[str, Any]) -> Times:
        """Return the times of a Deployment with one container."""
        pod = deployment["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        probe = container["readinessProbe"]
        pre_stop = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        grace = pod["terminationGracePeriodSeconds"]
        return cls(probe["periodSeconds"], probe["timeoutSeconds"], pre_stop, grace)


@dataclass(slots=True)
class Service:
    """Where proxies send requests."""

    times: Times
    urls: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)  # whatever their probes say

    def delete(self, url: str) -> None:
        """Take a server out for good."""
        self.deleted.add(url)
        self.urls.discard(url)

    @asynccontextmanager
    async def probed(self, url: str) -> AsyncIterator[None]:
        """Keep a server among the others while its probe passes; one failure takes it out."""
        passed = asyncio.Event()
        probing = asyncio.create_task(self._probe(url, passed))
        try:
            await passed.wait()
            yield
        finally:
            probing.cancel()
            self.urls.discard(url)

    async def _probe(self, url: str, passed: asyncio.Event) -> None:
        async with httpx.AsyncClient(timeout=self.times.probe_timeout) as client:
            while True:
                try:
                    is_ready = (await client.get(f"{url}/ready")).is_success
                except httpx.TransportError:
                    is_ready = False
                if is_ready and url not in self.deleted:
                    self.urls.add(url)
                    passed.set()
                else:
                    self.urls.discard(url)
                await asyncio.sleep(self.times.probe_period)


@dataclass(slots=True)
class Load:
    """Requests at a steady rate, and how they end."""

    options: RollingRestartOptions
    service: Service
    model: str
    ends: Counter[str] = field(default_factory=Counter)
    _kept: dict[str, httpx.AsyncClient] = field(default_factory=dict)

    async def run(self, until: asyncio.Event) -> None:
        """Send requests, and await their answers once no more are wanted."""
        begun = time.perf_counter()
        async with AsyncExitStack() as clients, asyncio.TaskGroup() as group:
            for index in itertools.count():
                if until.is_set():
                    return
                await self._begin(group, clients, index)
                due = begun + (index + 1) / self.options.rate
                await asyncio.sleep(max(0.0, due - time.perf_counter()))

    async def _begin(self, group: asyncio.TaskGroup, clients: AsyncExitStack, index: int) -> None:
        if not self.service.urls:
            self.ends["no server was ready"] += 1
            return
        url = random.choice(sorted(self.service.urls))
        if url not in self._kept:
            kept = httpx.AsyncClient(base_url=url, timeout=TIMEOUT)
            self._kept[url] = await clients.enter_async_context(kept)
        group.create_task(self._send(url, index))

    async def _send(self, url: str, index: int) -> None:
        try:
            if index % 2:
                async with connect(url) as client:
                    end = await self._ask(client, index)
            else:
                end = await self._ask(self._kept[url], index)
        except (ServerFault, httpx.TransportError) as error:
            end = f"{type(error).__name__}: {error}"
        self.ends[end] += 1

    async def _ask(self, client: httpx.AsyncClient, index: int) -> str:
        is_long = index % LONG_EVERY == 0
        tokens = self.options.long_tokens if is_long else self.options.tokens
        messages = [{"role": "user", "content": f"Tell me of the number {index}."}]
        answer = await ask(client, self.model, messages, tokens, ignore_eos=True)
        return ANSWERED if answer.tokens == tokens else f"{answer.tokens} of {tokens} tokens"


async def _end(pod: Running, service: Service, options: RollingRestartOptions) -> float:
    """Delete a server; return the seconds from SIGTERM to its end, infinity where it was killed."""
    times, process = service.times, psutil.Process(pod.pid)
    asyncio.get_running_loop().call_later(options.lag_s, service.delete, pod.base_url)
    await asyncio.sleep(times.pre_stop)
    told = time.perf_counter()
    process.terminate()
    try:
        await asyncio.to_thread(process.wait, times.grace - times.pre_stop)
    except psutil.TimeoutExpired:
        process.kill()
        return float("inf")
    return time.perf_counter() - told


@asynccontextmanager
async def _pod(command: ServerCommand, log: Path, service: Service) -> AsyncIterator[Running]:
    """Start a server that gets requests once its probe has passed."""
    with ExitStack() as server:
        pod = await asyncio.to_thread(server.enter_context, running(command, log))
        async with service.probed(pod.base_url):
            yield pod


async def replace_all(
    options: RollingRestartOptions, logs: Path
) -> tuple[Counter[str], list[float]]:
    """Replace a server so many times under load; return how requests and servers ended."""
    service = Service(Times.read(DEPLOYMENT))
    done = asyncio.Event()
    command = plait(Venvs.below(ROOT, logs, options.model))
    took = []
    async with AsyncExitStack() as pods:
        old = await pods.enter_async_context(_pod(command, logs / "server-0.log", service))
        load = Load(options, service, old.model)
        loading = asyncio.create_task(load.run(done))
        for index in range(1, options.rounds + 1):
            log = logs / f"server-{index}.log"
            new = await pods.enter_async_context(_pod(command, log, service))
            took.append(await _end(old, service, options))
            old = new
        done.set()
        await loading
    return load.ends, took


def main() -> int:
    """Print how requests ended; return 1 if one was lost or a server had to be killed."""
    options = run_command(RollingRestartOptions)
    assert isinstance(options, RollingRestartOptions)
    logs = Path(tempfile.mkdtemp(prefix="plait-restart-"))
    ends, took = asyncio.run(replace_all(options, logs))
    print(this_machine())
    print(f"{options.rounds} servers replaced; {ends.total()} requests: {dict(ends)}")
    print("seconds from SIGTERM to the end:", ", ".join(f"{each:.1f}" for each in took))
    return int(ends.total() != ends[ANSWERED] or float("inf") in took)


if __name__ == "__main__":
    sys.exit(main())
