"""`python -m benchmarks.drafters TRACE`: what drafters would gain on logged texts, without a model.

A logged text is replayed: at each step the drafters propose tokens, and the log tells which were
right. Tokens per forward pass and acceptance are exact for drafters that read only tokens, since
drafts do not change a text; the speed-up is predicted from the cost of a pass by its rows.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec
import torch
from pydantic import BeforeValidator, Field
from pydantic_settings import CliPositionalArg

from benchmarks.command_line import Command, command_config, run_command
from plait.decoders.contract.costs import CostCurve
from plait.decoders.contract.decoder import DecodeRequest, DraftBudget
from plait.decoders.contract.drafter import VerificationResult
from plait.decoders.contract.registry import Method, MethodError, methods
from plait.decoders.contract.text import Text
from plait.decoders.resolve import resolve_decoding
from plait.decoders.sampling.params import SamplingParams
from plait.decoders.speculative.config import MAX_DRAFT
from plait.decoders.speculative.context import DrafterContext
from plait.decoders.speculative.drafting import SpeculationState
from plait.decoders.speculative.speculator import Speculator
from plait.decoders.speculative.tree import ROOT, DraftTree
from plait.server.config_sources import Count, Texts
from plait.server.telemetry.token_trace import TracedText

EXIT_FAILED, EXIT_BAD_OPTIONS = 1, 2
POSITIONS = 8  # of a draft, in the table
UNKNOWN = -1  # stands for the token drawn at a row that was not reached


def _costs(value: object) -> object:
    """Return milliseconds by rows from a text like 1:3.1,8:10.9."""
    if not isinstance(value, str):
        return value
    return dict(part.split(":", 1) for part in value.split(",") if ":" in part)


class DraftersOptions(Command):
    """Replay logged token ids (`plait serve --token-trace FILE`) through drafters, without a model.

    Acceptance and tokens per forward pass are exact; the speed-up is predicted from the costs.
    """

    model_config = command_config("benchmarks.drafters")

    trace: CliPositionalArg[Path] = Field(description="What the server has logged.")
    drafters: Texts = Field(
        [], description="Drafters by name, a+b for a stack; none: each that can be replayed."
    )
    max_draft: int = Field(16, ge=1, le=64, description="Tokens of one draft, at most.")
    always: bool = Field(False, description="Draft whether it pays or not.")
    vocab_size: Count = Field(2**31 - 1, description="One past the largest token id.")
    costs: Annotated[dict[int, float], BeforeValidator(_costs)] = Field(
        {1: 3.1, 8: 10.9, 32: 36.7, 512: 405.0},
        description="Milliseconds of a pass by rows, rising, as rows:ms,...; default: "
        "SmolLM2-135M in int4 on 2 cores with AVX-512.",
    )
    output: Path | None = Field(None, description="JSON file for the findings.")

    @property
    def seconds(self) -> dict[int, float]:
        """Seconds of a pass by rows."""
        return {rows: milliseconds / 1e3 for rows, milliseconds in self.costs.items()}


@dataclass(slots=True)
class Replay:
    """The results of one drafter, or of several together, on all texts."""

    name: str
    tokens: int = 0
    forwards: int = 0
    drafted: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)
    tried_at: Counter[int] = field(default_factory=Counter)  # by depth of the draft
    right_at: Counter[int] = field(default_factory=Counter)
    plain_s: float = 0.0  # predicted: one pass per token
    drafts_s: float = 0.0  # predicted: the passes with drafts
    asking_s: float = 0.0  # measured: the drafters themselves

    @property
    def gain(self) -> float:
        """Predicted speed-up over plain decoding, with the drafters' own time."""
        return self.plain_s / (self.drafts_s + self.asking_s) if self.forwards else 1.0


def replay(texts: Iterable[TracedText], names: Sequence[str], options: DraftersOptions) -> Replay:
    """Replay texts, in their order, with the named drafters in one stack.

    Raises:
        MethodError: one of them is unknown, or needs a model.
    """
    for name in names:
        _check(name)
    limits = {"max_draft": options.max_draft, "always": options.always}
    named = {"drafter": [{"name": name, **limits} for name in names]}
    methods = resolve_decoding(named).methods
    costs = CostCurve(options.seconds)
    speculator = Speculator(DrafterContext(options.vocab_size), costs)
    found = Replay("+".join(names))
    for text in texts:
        request = DecodeRequest(
            text=Text(text.prompt_token_ids),
            sampling=SamplingParams(),
            max_tokens=len(text.token_ids),
            stop_token_ids=frozenset(),
            constraint=None,
            methods=methods,
        )
        member = speculator.start(request)
        assert member is not None
        _replay_text(found, speculator, member, text.token_ids, costs)
        speculator.finish(member)
    return found


def _replay_text(
    found: Replay,
    speculator: Speculator,
    member: SpeculationState,
    written: Sequence[int],
    costs: CostCurve,
) -> None:
    """Replay one text; add to the results."""
    seconds = costs.seconds(1 + MAX_DRAFT)
    at = 0
    while at < len(written):
        begun = time.perf_counter()
        (tree,) = speculator.propose(
            [member], [len(written) - at - 1], DraftBudget(MAX_DRAFT, fed=1)
        )
        result = _verify(tree, written[at:])
        _note_depths(found, tree, result)
        at += len(result.emitted)
        member.text.extend(result.emitted)
        counts = speculator.record(member, result)
        found.asking_s += time.perf_counter() - begun
        found.drafted.update(counts.drafted)
        found.accepted.update(counts.accepted)
        found.forwards += 1
        found.drafts_s += float(seconds[1 + len(tree)])
    found.tokens += len(written)
    found.plain_s += len(written) * float(seconds[1])


def _verify(tree: DraftTree, following: Sequence[int]) -> VerificationResult:
    """Return the verification result of a pass that draws the logged tokens."""
    node, accepted_rows, emitted = ROOT, [0], [following[0]]
    drawn = [UNKNOWN] * (len(tree) + 1)
    drawn[0] = following[0]
    while (child := tree.child(node, emitted[-1])) is not None and len(emitted) < len(following):
        node = child
        accepted_rows.append(child + 1)
        drawn[child + 1] = following[len(emitted)]
        emitted.append(following[len(emitted)])
    nothing = torch.empty(0, 0)
    return VerificationResult(
        tree.token_ids, tree.parents, accepted_rows, drawn, emitted, nothing, None
    )


def _note_depths(found: Replay, tree: DraftTree, verdict: VerificationResult) -> None:
    """Count, for each tried depth of the draft, whether one of its nodes was right."""
    parents = [row - 1 for row in verdict.accepted_rows]
    for depth, node in enumerate(parents):
        if node not in tree.parents:
            return
        found.tried_at[depth] += 1
        found.right_at[depth] += depth + 1 < len(parents)


def _check(name: str) -> None:
    method = methods().get(("drafter", name))
    known = ", ".join(sorted(each.name for each in _replayable()))
    if method is None:
        raise MethodError(f"There is no drafter {name!r}; there is: {known}.", "drafters")
    if method not in _replayable():
        raise MethodError(
            f"{name} can't be replayed: it needs more than tokens. These can: {known}.", "drafters"
        )


def _replayable() -> list[Method]:
    """Return the drafters that read nothing but tokens."""
    return [m for (kind, _), m in methods().items() if kind == "drafter" and m.replays]


def read_trace(path: Path) -> Iterator[TracedText]:
    """Yield the texts of a trace: one JSON object a line.

    Raises:
        msgspec.MsgspecError: a line is not what the server writes; the message says which.
    """
    decoder = msgspec.json.Decoder(TracedText)
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                text = decoder.decode(line)
            except msgspec.MsgspecError as error:
                raise msgspec.ValidationError(f"{path}:{number}: {error}") from error
            if text.token_ids:
                yield text


def table(replays: Sequence[Replay]) -> str:
    """Return the findings as a Markdown table."""
    lines = [
        "| drafters | tokens/forward | accepted | predicted speed-up | us a forward "
        "| accepted at depth 1, 2, ... |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for each in replays:
        drafted, accepted = each.drafted.total(), each.accepted.total()
        depths = range(min(POSITIONS, len(each.tried_at)))
        shares = " ".join(f"{each.right_at[d] / each.tried_at[d]:.2f}" for d in depths)
        lines.append(
            f"| {each.name} | {each.tokens / max(each.forwards, 1):.2f} "
            f"| {accepted} of {drafted} ({accepted / max(drafted, 1):.0%}) | {each.gain:.2f} "
            f"| {each.asking_s / max(each.forwards, 1) * 1e6:.0f} | {shares} |"
        )
    return "\n".join(lines)


def run_drafters(options: DraftersOptions) -> int:
    """Replay a trace for every drafter; print the table; return the exit code."""
    try:
        texts = list(read_trace(options.trace))
        stacks = [name.split("+") for name in options.drafters] or [
            [method.name] for method in _replayable()
        ]
        replays = [replay(texts, stack, options) for stack in stacks]
    except (MethodError, msgspec.MsgspecError, OSError) as error:
        sys.stderr.write(f"plait: {error}\n")
        return EXIT_BAD_OPTIONS
    if not texts:
        sys.stderr.write(f"plait: {options.trace} holds no text with tokens.\n")
        return EXIT_FAILED
    number = sum(len(text.token_ids) for text in texts)
    sys.stdout.write(f"{len(texts)} texts, {number} tokens\n\n{table(replays)}\n")
    if options.output is not None:
        options.output.write_bytes(msgspec.json.format(msgspec.json.encode(replays)))
    return 0


if __name__ == "__main__":
    sys.exit(run_drafters(run_command(DraftersOptions)))
