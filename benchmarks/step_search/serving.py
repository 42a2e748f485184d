"""The server's engine in this process, for benchmarks.step_search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.step_search import task
from plait.decoders.resolve import resolve_decoding
from plait.decoders.sampling.params import SamplingParams
from plait.server.engine.build import build_engine
from plait.server.engine.engine import Engine
from plait.server.settings import EngineSettings
from plait.server.wire.messages import Delta, Failed, GenerateRequest


@dataclass
class Answers:
    """The completions of one problem, and how many tokens were drawn for them."""

    texts: list[list[int]]
    searched: int = 0

    @property
    def completions(self) -> list[str]:
        """The texts."""
        return [task.decode(tokens) for tokens in self.texts]

    @property
    def num_tokens(self) -> int:
        """Tokens that were drawn, those of lost members among them."""
        return self.searched or sum(map(len, self.texts))


def start(folder: Path, scorer_url: Sequence[str] = ()) -> Engine:
    """Return an engine with the generator of a folder, on one thread."""
    settings = EngineSettings(
        model=str(folder / "generator"),
        weights="fp32",
        threads=1,
        max_num_seqs=128,
        scorer_url=tuple(scorer_url),
    )
    return build_engine(settings)[0]


def answer(
    engine: Engine, problems: Sequence[list[int]], decoding: dict[str, Any], n: int = 1
) -> list[Answers]:
    """Run problems at temperature 1, each with its place as the seed; return their answers.

    Raises:
        RuntimeError: the engine has refused one.
    """
    found = {str(i): Answers([[] for _ in range(n)]) for i in range(len(problems))}
    for i, terms in enumerate(problems):
        engine.add(
            GenerateRequest(
                str(i),
                task.encode(task.prompt_of(terms)),
                SamplingParams(seed=i),
                task.MAX_TOKENS,
                n=n,
                stop_token_ids=[task.END],
                decoding=resolve_decoding({"drafter": "off", **decoding}),
            )
        )
    while engine.has_work:
        for report in engine.step():
            if isinstance(report, Failed):
                raise RuntimeError(report.message)
            if isinstance(report, Delta):
                each = found[report.request_id]
                each.texts[report.index] += report.token_ids
                each.searched = report.search.num_tokens if report.search else each.searched
    return list(found.values())
