"""Tokens per forward pass on held-out prompts, with each drafter and without.

One sequence at a time, drafts fed whether they pay or not, so that what is measured is the drafter
and not the machine. The texts must be those without drafts.

    python -m benchmarks.drafter_heads.evaluate --prompts 20 --out RESULTS.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from msgspec.structs import replace

from benchmarks.drafter_heads.data import HELD_OUT_SEED, MODEL, deltas, request_at
from benchmarks.drafter_heads.prompts import HELD_OUT
from plait.decoders.resolve import resolve_decoding
from plait.decoders.sampling.params import SamplingParams
from plait.server.engine.build import build_engine
from plait.server.engine.engine import Engine
from plait.server.models.catalog import resolve
from plait.server.prompt.tokenizer import load_tokenizer
from plait.server.settings import EngineSettings
from plait.server.wire.messages import GenerateRequest

TOKENS = 64
DRAFTERS: Mapping[str, Any] = {
    "off": "off",
    "ppd 8": {"name": "ppd", "length": 8, "always": True},
    "ppd 12": {"name": "ppd", "length": 12, "always": True},
    "ppd 16": {"name": "ppd", "length": 16, "always": True},
    "ppd published": {"name": "ppd", "preset": "published", "always": True},
    "eagle chain of 3": {"name": "eagle", "width": 1, "confidence": 0.0, "always": True},
    "eagle": {"name": "eagle", "always": True},
    "eagle published": {"name": "eagle", "preset": "published", "always": True},
    "chimera chain of 3": {"name": "chimera", "width": 1, "confidence": 0.0, "always": True},
    "chimera": {"name": "chimera", "always": True},
    "chimera published": {"name": "chimera", "preset": "published", "always": True},
}


def answers(
    engine: Engine, requests: Sequence[GenerateRequest], drafter: Any
) -> tuple[list[list[int]], dict[str, float]]:
    """Return the requests' texts, one after the other, and the sums of what they took."""
    texts: list[list[int]] = []
    sums = {"tokens": 0.0, "forwards": 0.0, "rows": 0.0, "accepted": 0.0}
    decoding = resolve_decoding({"drafter": drafter, "trace": True})
    for request in requests:
        engine.add(replace(request, decoding=decoding))
        tokens: list[int] = []
        for delta in deltas(engine):
            tokens += delta.token_ids
            _add(sums, delta.trace)
        sums["tokens"] += len(tokens)
        texts.append(tokens)
    return texts, sums


def _add(sums: dict[str, float], trace: Mapping[str, Any] | None) -> None:
    if trace is not None:
        sums["forwards"] += trace["forwards"]
        sums["rows"] += sum(trace["drafted"].values())
        sums["accepted"] += sum(trace["accepted"].values())


def main() -> None:
    """Read the command line, measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--only", nargs="*", help="names of drafters, or what they begin with")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(resolve(MODEL))
    engine, info = build_engine(EngineSettings(model=MODEL, threads=1))
    chosen = {
        name: drafter
        for name, drafter in DRAFTERS.items()
        if drafter == "off" or drafter["name"] in info.capabilities
        if drafter == "off" or not args.only or any(name.startswith(o) for o in args.only)
    }
    rows = []
    print("| drafter | T | tokens/forward | rows/forward | accepted/forward |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for temperature in (0.0, 1.0):
        requests = [
            replace(
                request_at(tokenizer, HELD_OUT, HELD_OUT_SEED, i),
                sampling=SamplingParams(temperature=temperature, seed=i),
                max_tokens=TOKENS,
            )
            for i in range(args.prompts)
        ]
        want: list[list[int]] = []
        for name, drafter in chosen.items():
            texts, sums = answers(engine, requests, drafter)
            want = want or texts
            same = sum(one == other for one, other in zip(texts, want, strict=True))
            row = {
                "drafter": name,
                "temperature": temperature,
                "tokens_per_forward": sums["tokens"] / sums["forwards"],
                "rows_per_forward": sums["rows"] / sums["forwards"],
                "accepted_per_forward": sums["accepted"] / sums["forwards"],
                "same_texts": same,
            }
            rows.append(row)
            figures = [f"{row[key]:.2f}" for key in list(row)[2:5]]
            print(f"| {name} | {temperature} | {' | '.join(figures)} |", flush=True)
            assert same == len(texts), f"{name} changed {len(texts) - same} texts"
    if args.out:
        args.out.write_text(json.dumps({"model": info.fingerprint, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
