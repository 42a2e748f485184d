"""Native and vLLM workers in bf16: where their tokens part, it is a near tie.

    python -m benchmarks.bf16_ties [--requests 50] [--weights bf16] [--pair native vllm]

--pair vllm vllm-off compares a kind with itself without drafts: whether the number of rows that a
pass has matters to it.

The same seeded requests (greedy, with a temperature, with top_p, under a JSON schema) go to both
kinds of worker, eight at a time, and tokens are compared one by one. Both draw the best of log-
probability / temperature + noise, and the noise is the same. So at the first difference the text so
far is read again by both, and the gap between the two tokens' scores is worked out in each, in
nats. It is explained if each worker's own scores choose its own token; then the gap is no larger
than what the workers' log-probabilities differ by, which must be small as well. A text read again
in one pass rounds otherwise than token by token, so a gap that is small anyway will do. top_p may
leave a token out in one of them; then its mass must be near the bound. Prints a table; exit code 1
for a difference that is no near tie. With --weights fp32 there should be none at all.
`make vllm` installs the vLLM that is needed.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import torch

from benchmarks.export_hf import export
from benchmarks.machine import this_machine
from benchmarks.markdown import table
from benchmarks.prompts import AS_PERSON, person, question, story
from benchmarks.servers import Command, Running, running
from plait.kernels.noise import key
from plait.kernels.noise.reference import gumbel
from plait.server.models.catalog import resolve
from plait.server.prompt.tokenizer import Tokenizer, load_tokenizer
from plait.server.workers.vllm.interpreter import find_python

MODEL = "smollm2-135m-instruct"
OFF = "-off"  # without drafts
CONTENDERS = ("native", "vllm", f"native{OFF}", f"vllm{OFF}")
AT_ONCE = 8
TIE = 0.1  # nats; a gap that needs no explanation
APART = 0.5  # nats that the workers' log-probabilities may differ by at a difference
MASS_TIE, MASS_APART = 0.01, 0.05  # the same of the mass before a token, under top_p
LENGTHS = {"greedy": 32, "temperature": 32, "top_p": 32, "schema": 64}

Body = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, and which of the mixture it is."""

    name: str
    mix: str
    body: Body

    @property
    def temperature(self) -> float:
        """What divides log-probabilities: 1 for a greedy request, which has no noise either."""
        return float(self.body["temperature"]) or 1.0


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a worker has answered."""

    prompt: Sequence[int]
    output: Sequence[int]
    logprobs: Sequence[float]


@dataclass(frozen=True, slots=True)
class Reading:
    """What one worker says of the two tokens behind the common text; its own stands first."""

    logprobs: tuple[float, float]
    masses: tuple[float, float] = (0.0, 0.0)  # of the tokens that are likelier than each


@dataclass(frozen=True, slots=True)
class Difference:
    """The first difference of one request, as both workers see it."""

    asked: Asked
    position: int
    tokens: tuple[int, int]
    noise: tuple[float, float]  # of the two tokens
    readings: tuple[Reading, Reading]

    @property
    def gaps(self) -> tuple[float, float]:
        """By how many nats each worker's scores prefer its own token to the other's."""
        heat = self.asked.temperature
        noise = heat * (self.noise[0] - self.noise[1])
        one, other = (each.logprobs[0] - each.logprobs[1] for each in self.readings)
        return one + noise, other - noise

    @property
    def apart(self) -> float:
        """By how many nats the workers' log-probabilities of the two tokens differ."""
        one, other = (each.logprobs[0] - each.logprobs[1] for each in self.readings)
        return abs(one + other)

    @property
    def cut(self) -> int | None:
        """Which worker's truncation leaves out the other's token, if one does."""
        bound = float(self.asked.body.get("top_p", 1.0))
        out = [i for i, each in enumerate(self.readings) if each.masses[1] >= bound]
        return out[0] if out else None

    def is_near_tie(self) -> bool:
        """Tell whether rounding explains it."""
        if self.cut is None:
            is_explained = min(self.gaps) >= 0
            return self.apart <= APART and (is_explained or min(map(abs, self.gaps)) <= TIE)
        here, there = self.readings[self.cut].masses[1], self.readings[1 - self.cut].masses[0]
        bound = float(self.asked.body["top_p"])
        is_explained = there < bound
        is_near = min(abs(here - bound), abs(there - bound)) <= MASS_TIE
        return abs(here - there) <= MASS_APART and (is_explained or is_near)

    def row(self, tokenizer: Tokenizer) -> list[str]:
        """Return the cells of its row."""
        written = [
            repr(tokenizer.token_name(token).decode(errors="replace")) for token in self.tokens
        ]
        why = "near tie" if self.cut is None else "near top_p"
        return [
            *(self.asked.name, self.asked.mix, *written),
            *(str(self.position), *(f"{gap:+.3f}" for gap in self.gaps), f"{self.apart:.3f}"),
            why if self.is_near_tie() else "NO TIE",
        ]


def requests_of(count: int, seed: int) -> list[Asked]:
    """Return seeded requests of all kinds in turn."""
    rng = random.Random(seed)
    mixes: Mapping[str, Callable[[], dict[str, Any]]] = {
        "greedy": lambda: {"temperature": 0.0},
        "temperature": lambda: {"temperature": rng.choice((0.7, 1.0))},
        "top_p": lambda: {"temperature": rng.choice((0.7, 1.0)), "top_p": rng.choice((0.8, 0.95))},
        "schema": lambda: {**AS_PERSON, "temperature": rng.choice((0.7, 1.0))},
    }
    made = []
    for i in range(count):
        mix = [*mixes][i % len(mixes)]
        text = person(rng) if mix == "schema" else rng.choice((story, question))(rng)
        body = {
            "messages": [{"role": "user", "content": text}],
            "seed": rng.getrandbits(32),
            "max_tokens": LENGTHS[mix],
            **{"top_p": 1.0, "top_k": 0, "min_p": 0.0, "logprobs": True, "return_token_ids": True},
            **mixes[mix](),
        }
        made.append(Asked(f"r{i}", mix, body))
    return made


async def ask(client: httpx.AsyncClient, path: str, body: Body) -> dict[str, Any]:
    """Return an answer; raise RuntimeError for an error."""
    response = await client.post(path, json={"model": MODEL, **body})
    if response.status_code != httpx.codes.OK:
        raise RuntimeError(f"{path}: {response.text}")
    answer: dict[str, Any] = response.json()
    return answer


async def answers(client: httpx.AsyncClient, requests: Sequence[Asked]) -> list[Tokens]:
    """Return the answers to all requests, some at a time."""
    limit = asyncio.Semaphore(AT_ONCE)

    async def one(asked: Asked) -> Tokens:
        async with limit:
            answer = await ask(client, "/v1/chat/completions", asked.body)
        (choice,) = answer["choices"]
        entries = choice["logprobs"]["content"]
        logprobs = [entry["logprob"] for entry in entries]
        return Tokens(answer["prompt_token_ids"], choice["token_ids"], logprobs)

    return list(await asyncio.gather(*map(one, requests)))


def first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """Return where two outputs part; None if they are equal."""
    pairs = enumerate(zip(one, other, strict=False))
    end = min(len(one), len(other)) if len(one) != len(other) else None
    return next((i for i, (a, b) in pairs if a != b), end)


async def read(
    client: httpx.AsyncClient, text: Sequence[int], tokens: Sequence[int], asked: Asked
) -> Reading:
    """Return what a worker says of two tokens behind a text: its own, and the other's."""
    found = []
    for token in tokens:
        body = {"prompt": [*text, token], "max_tokens": 1, "prompt_logprobs": 0}
        (choice,) = (await ask(client, "/v1/completions", body))["choices"]
        found.append(float(choice["prompt_logprobs"][-1][str(token)]["logprob"]))
    if asked.body.get("top_p", 1.0) >= 1.0:
        return Reading((found[0], found[1]))
    body = {"prompt": [*text], "max_tokens": 1, "logprobs": -1, "temperature": 0}
    (choice,) = (await ask(client, "/v1/completions", body))["choices"]
    row = [*choice["logprobs"]["top_logprobs"][0].values()]
    own, other = (mass_before(row, each, asked.temperature) for each in found)
    return Reading((found[0], found[1]), (own, other))


def mass_before(row: Sequence[float], logprob: float, temperature: float) -> float:
    """Return the probability, at a temperature, of what is likelier than a token."""
    weights = [math.exp(each / temperature) for each in row]
    likelier = [w for w, each in zip(weights, row, strict=True) if each > logprob + 1e-6]
    return math.fsum(likelier) / math.fsum(weights)


def noise_of(asked: Asked, position: int, tokens: Sequence[int], size: int) -> tuple[float, float]:
    """Return the noise of two tokens at an absolute position; none if the request is greedy."""
    if not asked.body["temperature"]:
        return 0.0, 0.0
    row = gumbel(torch.tensor([key(int(asked.body["seed"]), 0, position)]), size)[0]
    return float(row[tokens[0]]), float(row[tokens[1]])


def without_drafts(requests: Sequence[Asked]) -> list[Asked]:
    """Return the same requests with drafters off."""
    off = {"decoding": {"drafter": "off"}}
    return [replace(each, body={**each.body, **off}) for each in requests]


async def compare(
    clients: Mapping[str, httpx.AsyncClient], requests: Sequence[Asked], size: int
) -> tuple[list[Difference], list[float]]:
    """Return the first difference of each request, and how far logprobs of equal tokens differ.

    clients: of the two contenders.
    """
    first, second = [
        await answers(client, without_drafts(requests) if name.endswith(OFF) else requests)
        for name, client in clients.items()
    ]
    one_client, other_client = clients.values()
    found: list[Difference] = []
    apart: list[float] = []
    for asked, one, other in zip(requests, first, second, strict=True):
        at = first_difference(one.output, other.output)
        pairs = zip(one.logprobs[:at], other.logprobs[:at], strict=False)
        apart += [abs(a - b) for a, b in pairs]
        if at is None:
            continue
        if at >= min(len(one.output), len(other.output)):
            raise RuntimeError(f"{asked.name}: one answer is the other's beginning")
        text, tokens = [*one.prompt, *one.output[:at]], (one.output[at], other.output[at])
        readings = (
            await read(one_client, text, tokens, asked),
            await read(other_client, text, tokens[::-1], asked),
        )
        noise = noise_of(asked, len(text), tokens, size)
        found.append(Difference(asked, at, tokens, noise, readings))
    return found, apart


def command(kind: str, folder: Path, weights: str, size: int) -> Command:
    """Return how a kind of worker is started."""
    plait = str(Path(sys.executable).with_name("plait"))
    vllm = ["--worker", "vllm", "--vllm-python", find_python()] if kind == "vllm" else []
    return Command(
        [
            *(plait, "serve", str(folder), "--served-name", MODEL, "--port", "{port}"),
            *("--weights", weights, "--max-model-len", "1024", "--kv-cache-bytes", "300MB"),
            *("--max-logprobs", str(size), "--no-access-log", *vllm),
        ],
        ready="/ready",
    )


async def _run(servers: Mapping[str, Running], args: argparse.Namespace, size: int) -> bool:
    tokenizer = load_tokenizer(resolve(MODEL))
    requests = requests_of(args.requests, args.seed)
    async with AsyncExitStack() as stack:
        clients = {
            name: await stack.enter_async_context(
                httpx.AsyncClient(base_url=servers[name.removesuffix(OFF)].base_url, timeout=600)
            )
            for name in args.pair
        }
        found, apart = await compare(clients, requests, size)
    head = ["Request", "Kind", *args.pair, "Token", *(f"Gap, {name}" for name in args.pair)]
    print(table([*head, "Apart", ""], [each.row(tokenizer) for each in found], texts=4))
    bad = [each for each in found if not each.is_near_tie()]
    print(
        f"\n{len(requests)} requests in {args.weights}, {len(apart)} equal tokens before the first "
        f"differences, whose log-probabilities differ by {math.fsum(apart) / len(apart):.4f} nats "
        f"({max(apart):.3f} at most); {len(found)} requests with a difference, {len(bad)} of them "
        f"no near tie. {this_machine()}"
    )
    return not bad


def main() -> int:
    """Start the servers, compare, print; 1 if a difference is no near tie."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--requests", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", default="bf16", choices=("bf16", "fp32"))
    parser.add_argument("--pair", nargs=2, default=["native", "vllm"], choices=CONTENDERS)
    args = parser.parse_args()
    size = len(load_tokenizer(resolve(MODEL)).token_bytes)
    with ExitStack() as stack:
        files = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="plait-ties-")))
        export(resolve(MODEL), files / "hf")
        kinds = dict.fromkeys(name.removesuffix(OFF) for name in args.pair)
        servers = {
            kind: stack.enter_context(
                running(command(kind, files / "hf", args.weights, size), files / f"{kind}.log")
            )
            for kind in kinds
        }
        return int(not asyncio.run(_run(servers, args, size)))


if __name__ == "__main__":
    sys.exit(main())
