"""Many canvases under constraints at once come to what each of them comes to alone."""

from __future__ import annotations

from typing import Any

import pytest

from plait.decoders.contract.decoder import DecodeRequest
from plait.decoders.contract.text import NoiseKey, Text
from plait.decoders.diffusion import step as steps
from plait.decoders.diffusion.decoder import DiffusionDecoder
from plait.decoders.diffusion.spec import DiffusionSpec
from plait.decoders.sampling.params import SamplingParams
from tests.fixtures.canvas_driver import Run, UnresolvedRequest, decode_request, drive
from tests.fixtures.constraint_vocabularies import BYTES_AND_PIECES, EOS, GRAMMARS, load
from tests.fixtures.hash_model import HashLaw
from tests.fixtures.lookaheads import naive_constrained
from tests.fixtures.word_constraint import END, LANGUAGE, WordConstraint

LAW = HashLaw(vocab=len(BYTES_AND_PIECES.token_bytes) + 1, radius=3)
LAWS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 2.0},
    {"temperature": 1.0, "top_p": 0.9, "logit_bias": {7: 2.0}},
    {"temperature": 1.0, "presence_penalty": 0.5},
]
WAYS: list[Any] = [
    "auto",
    [{"name": "threshold", "threshold": 0.05}],
    ["credit", "factor", "free-dave"],
    ["entropy-bound"],
]
CACHES: list[Any] = [{"name": "recap", "active": 1}, {"name": "recap", "active": 2, "local": 2}]


def decoder(*, full: bool = False) -> DiffusionDecoder:
    return DiffusionDecoder(
        DiffusionSpec(
            mask_id=LAW.mask_id,
            eos_ids=(EOS,),
            attention="full" if full else "block",
            block_size=16,
            canvas=32,
        ),
        LAW.vocab,
    )


def requests(way: Any, spare: int) -> list[DecodeRequest]:
    """Return one request for each law and grammar."""
    made: list[DecodeRequest] = []
    for i, fields in enumerate(LAWS):
        kind, text = GRAMMARS[i % len(GRAMMARS)]
        constraint = load(kind, text)
        params = SamplingParams(seed=i, **fields)
        made.append(
            UnresolvedRequest(
                Text([i, 2, 3 * i], NoiseKey(i, i % 2)),
                params,
                constraint.min_tokens() + spare,
                frozenset({EOS}),
                constraint,
                options={"unmasker": way},
            )
        )
    return made


def outcomes(run: Run) -> tuple[list[int], str | None, list[int], int]:
    return run.answer, run.finish, run.state.emitted_steps, run.state.num_forced


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("spare", [1, 20])
def test_batches_rule_as_single_rows_do(
    way: Any, spare: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    have = drive(decoder(), LAW, requests(way, spare), room=64)
    monkeypatch.setattr(steps, "constrain_draws", naive_constrained)
    want = drive(decoder(), LAW, requests(way, spare), room=64)
    assert [outcomes(run) for run in have] == [outcomes(run) for run in want]


@pytest.mark.parametrize("cache", CACHES, ids=str)
def test_a_hole_that_no_row_was_read_of_ends_the_walk(cache: Any) -> None:
    """It has no law to be drawn from; what lies behind it waits."""
    for seed in range(8):
        params = SamplingParams(seed=seed, temperature=seed % 3)
        request = decode_request(
            [seed, 1], 9, {"unmasker": [cache]}, params=params, stops=frozenset({END})
        )
        constrained = UnresolvedRequest(
            request.text,
            params,
            9,
            frozenset({END}),
            WordConstraint(LANGUAGE, END),
            options=request.options,
        )
        (run,) = drive(decoder(full=True), LAW, [constrained])
        assert tuple(run.answer) in LANGUAGE
        assert run.finish == "stop"
