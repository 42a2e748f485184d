"""Self-distillation: the model answers prompts from templates, and heads learn from its answers.

Parts of PART prompts are written one by one, so that training can begin before the last and a
stopped run goes on where it was. Everything follows from the seed.

    python -m benchmarks.drafter_heads.data FOLDER --prompts 1600
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.drafter_heads.prompts import HELD_OUT, TRAINING, Material, prompt_at
from plait.decoders.resolve import resolve_decoding
from plait.decoders.sampling.params import SamplingParams
from plait.server.engine.build import build_engine
from plait.server.engine.engine import Engine
from plait.server.models.catalog import resolve
from plait.server.prompt.chat_prompt import chat_prompt
from plait.server.prompt.tokenizer import Tokenizer, load_tokenizer
from plait.server.settings import EngineSettings
from plait.server.wire.messages import Delta, Failed, GenerateRequest

MODEL = "smollm2-135m-instruct"
PART = 64  # prompts of a file
AT_ONCE = 64
MAX_TOKENS = 192
TEMPERATURES = (0.0, 0.7, 0.7, 1.0)  # drawn for each prompt
TRAINING_SEED, HELD_OUT_SEED = 20_000, 30_000
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt and what the model answered."""

    tokens: Ints
    prompt: int  # tokens of it

    @property
    def answer(self) -> int:
        """Tokens of the answer, its end included where it has one."""
        return len(self.tokens) - self.prompt


def load(folder: Path, name: str = "train") -> list[Text]:
    """Return the texts that have been written so far, in order."""
    parts = [path for path in sorted(folder.glob(f"{name}-*.npz")) if ".part" not in path.name]
    return [text for path in parts for text in read_part(path)]


def read_part(path: Path) -> list[Text]:
    """Return the texts of one file."""
    with np.load(path) as part:
        tokens = part["tokens"].astype(np.int64)
        stops, prompts = part["stops"].tolist(), part["prompts"].tolist()
    pieces = zip([0, *stops[:-1]], stops, prompts, strict=True)
    return [Text(tokens[start:stop], prompt) for start, stop, prompt in pieces]


def write(folder: Path, name: str, material: Material, seed: int, count: int) -> None:
    """Answer so many prompts and write them in parts; parts that exist are left alone."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer(resolve(MODEL))
    engine: Engine | None = None
    for first in range(0, count, PART):
        path = folder / f"{name}-{first // PART:04d}.npz"
        if path.exists():
            continue
        if engine is None:
            engine, _ = build_engine(EngineSettings(model=MODEL, threads=1, max_num_seqs=AT_ONCE))
        requests = [
            request_at(tokenizer, material, seed, i) for i in range(first, min(first + PART, count))
        ]
        texts = answer(engine, requests)
        temporary = path.with_suffix(".part.npz")
        np.savez(
            temporary,
            tokens=np.concatenate([text.tokens for text in texts]).astype(np.uint16),
            stops=np.cumsum([len(text.tokens) for text in texts]),
            prompts=[text.prompt for text in texts],
            temperatures=[request.sampling.temperature for request in requests],
            seed=seed,
        )
        temporary.replace(path)
        print(f"{path.name}: {sum(text.answer for text in texts)} tokens answered", flush=True)


def deltas(engine: Engine) -> Iterator[Delta]:
    """Run an engine until it has nothing left to do; yield what it writes.

    Raises:
        RuntimeError: a request has failed.
    """
    while engine.has_work:
        reports = engine.step()
        failed = next((report for report in reports if isinstance(report, Failed)), None)
        if failed is not None:
            raise RuntimeError(failed.message)
        yield from (report for report in reports if isinstance(report, Delta))


def answer(engine: Engine, requests: Sequence[GenerateRequest]) -> list[Text]:
    """Return the requests' prompts with their answers."""
    answers = {request.request_id: list(request.prompt_token_ids) for request in requests}
    for request in requests:
        engine.add(request)
    for delta in deltas(engine):
        answers[delta.request_id] += delta.token_ids
        if delta.stop_token is not None:
            answers[delta.request_id].append(delta.stop_token)
    return [
        Text(np.array(answers[request.request_id]), len(request.prompt_token_ids))
        for request in requests
    ]


def request_at(tokenizer: Tokenizer, material: Material, seed: int, index: int) -> GenerateRequest:
    """Return the request that answers one prompt."""
    prompt = prompt_at(material, seed, index)
    temperature = float(np.random.default_rng([seed, index, 1]).choice(TEMPERATURES))
    return GenerateRequest(
        request_id=f"{index:06d}",
        prompt_token_ids=chat_prompt(tokenizer, [{"role": "user", "content": prompt}]),
        sampling=SamplingParams(temperature=temperature, seed=seed + index),
        max_tokens=MAX_TOKENS,
        stop_token_ids=sorted(tokenizer.eos_token_ids),
        decoding=resolve_decoding({"drafter": "off"}),
    )


def main() -> None:
    """Read the command line and write the texts."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prompts", type=int, default=1600)
    parser.add_argument("--held-out", type=int, default=54)
    args = parser.parse_args()
    write(args.folder, "held-out", HELD_OUT, HELD_OUT_SEED, args.held_out)
    write(args.folder, "train", TRAINING, TRAINING_SEED, args.prompts)


if __name__ == "__main__":
    main()
