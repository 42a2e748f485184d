"""A cell is the measurement of one setting on one task; it is stored at once and then reused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.decoders.presets import Setting
from benchmarks.decoders.running import LoadedModel, MeasuredRun, run_requests
from benchmarks.tasks.case import HELD_OUT_SEEDS, Case
from benchmarks.tasks.catalog import judge, make_case
from plait.decoders.resolve import resolve_decoding
from plait.decoders.sampling.params import SamplingParams
from plait.server.prompt.chat_prompt import chat_prompt
from plait.server.prompt.tokenizer import Tokenizer
from plait.server.wire.messages import CompiledConstraint, GenerateRequest


@dataclass(frozen=True, slots=True)
class Sample:
    """The cases of each task."""

    seed: int = 0  # counted from the first held-out one
    cases: int = 25  # of each task
    templates: tuple[int, ...] = (0, 1, 2)  # asked in turn

    def of(self, task: str) -> list[Case]:
        """Return the cases of a task, the same for every setting."""
        count = len(self.templates)
        seed = HELD_OUT_SEEDS.start + self.seed
        return [
            make_case(task, seed, i, template=self.templates[i % count]) for i in range(self.cases)
        ]


@dataclass(frozen=True, slots=True)
class Cell:
    """The results of one setting on one task; entry i of each list belongs to case i."""

    key: str  # a hash of everything the measurement depends on
    setting: str
    task: str
    templates: list[int]
    right: list[bool]
    tokens: list[int]  # including the stop token
    forwards: list[int]
    answers: list[list[int]]  # token ids
    seconds: float
    steps: int  # of the engine, with all streams in it
    rows: int
    flops: float


class Store:
    """Cells in a file of JSON lines, so that an interrupted comparison resumes where it stopped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text() if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]  # the last line may have been cut off
        if whole != text:
            path.write_text(whole)
        cells = [msgspec.json.decode(line, type=Cell) for line in whole.splitlines()]
        self._cells = {cell.key: cell for cell in cells}

    def get(self, key: str) -> Cell | None:
        """Return the cell of a key; None if it was not measured."""
        return self._cells.get(key)

    def add(self, cell: Cell) -> None:
        """Keep a cell, in memory and on disk."""
        self._cells[cell.key] = cell
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(cell) + b"\n")


def key_of(setting: Setting, task: str, conditions: Mapping[str, object]) -> str:
    """Return the key of a cell; cells with equal keys have equal answers."""
    content = json.dumps([setting.model_dump(), task, conditions], sort_keys=True)
    return hashlib.blake2b(content.encode(), digest_size=12).hexdigest()


def requests_of(
    served: LoadedModel,
    setting: Setting,
    cases: Sequence[Case],
    constraints: Sequence[CompiledConstraint] | None = None,
) -> list[GenerateRequest]:
    """Return one request per case, as the server's front end would make it."""
    named = {**decoding_of(setting, served.tokenizer), "trace": True}
    decoding = resolve_decoding(named, served.info.diffusion)
    return [
        GenerateRequest(
            request_id=f"{case.task}-{i}",
            prompt_token_ids=chat_prompt(
                served.tokenizer, [{"role": "user", "content": case.prompt}]
            ),
            sampling=SamplingParams(temperature=setting.temperature, seed=i),
            max_tokens=setting.max_tokens,
            stop_token_ids=sorted(served.tokenizer.eos_token_ids),
            constraint=constraints[i] if constraints else None,
            decoding=decoding,
            arrived=float(i),
        )
        for i, case in enumerate(cases)
    ]


def decoding_of(setting: Setting, tokenizer: Tokenizer) -> Mapping[str, Any]:
    """Return a setting's `decoding` with its delimiters as this model's tokens."""
    if not setting.delimiters:
        return setting.decoding
    text = setting.delimiters.encode()
    ids = [i for i, spelled in enumerate(tokenizer.token_bytes) if text in spelled]
    named = {"name": "ada-block", "delimiter_ids": ids}
    methods = [named if each == "ada-block" else each for each in setting.decoding["unmasker"]]
    return {**setting.decoding, "unmasker": methods}


def measure(
    served: LoadedModel, setting: Setting, cases: Sequence[Case], *, streams: int, key: str
) -> Cell:
    """Answer the cases, all of one task, and judge the answers.

    Raises:
        RequestFailed, ServerError: the model can't be decoded so.
    """
    run = run_requests(served, requests_of(served, setting, cases), streams)
    return Cell(
        key=key,
        setting=setting.name,
        task=cases[0].task,
        templates=[case.template for case in cases],
        right=judged(served, cases, run),
        tokens=[answer.tokens for answer in run.answers],
        forwards=[answer.forwards for answer in run.answers],
        answers=[list(answer.token_ids) for answer in run.answers],
        seconds=run.seconds,
        steps=run.steps,
        rows=run.rows,
        flops=run.flops,
    )


def texts(served: LoadedModel, run: MeasuredRun) -> list[str]:
    """Return the answers as text."""
    return [served.tokenizer.decode(answer.token_ids) for answer in run.answers]


def judged(served: LoadedModel, cases: Sequence[Case], run: MeasuredRun) -> list[bool]:
    """Return which answers are right."""
    return [judge(case, text) for case, text in zip(cases, texts(served, run), strict=True)]
