"""free-dave is lossless: same tokens, same steps in the same order, never more passes."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from plait.decoders.contract.decoder import DecodeRequest
from plait.decoders.diffusion.canvas import Canvas, PendingDraws
from plait.decoders.diffusion.decoder import DiffusionDecoder
from plait.decoders.diffusion.propose import draft_canvases
from plait.decoders.diffusion.spec import DiffusionSpec
from plait.decoders.diffusion.step import matching_draft
from plait.decoders.sampling.params import SamplingParams
from tests.fixtures.canvas_driver import decode_request, drive
from tests.fixtures.hash_model import HashLaw

LAW = HashLaw(radius=3, coupling=0.6)
ENDS = frozenset({7})
ROOM = 1_000_000  # shared by all sequences of a batch
WIDTH = 4
FREE_DAVE = {"name": "free-dave", "width": WIDTH}
PLAIN = SamplingParams()
EDITED = SamplingParams(
    repetition_penalty=1.3,
    frequency_penalty=0.4,
    bad_words=((3,), (4, 5)),
    min_tokens=4,
    top_k=20,
    logit_bias={9: 2.0},
)
ADA_BLOCK = {"name": "ada-block", "delimiter_ids": [*range(11, 16)], "threshold": 0, "share": 1}
Parts = list[Any]


def host(*, full: bool = False, shift: bool = False, block: int = 8) -> DiffusionDecoder:
    spec = DiffusionSpec(
        LAW.mask_id, (7,), "full" if full else "block", block, shift=shift, canvas=block
    )
    return DiffusionDecoder(spec, LAW.vocab)


def some_requests(
    count: int, seed: int, unmasker: Parts, params: SamplingParams
) -> list[DecodeRequest]:
    rng = random.Random(seed)
    return [
        decode_request(
            [rng.randrange(LAW.vocab) for _ in range(rng.randint(1, 12))],
            rng.randint(1, 16),
            {"unmasker": unmasker},
            params=params,
            stops=ENDS,
        )
        for _ in range(count)
    ]


def check(
    decoder: DiffusionDecoder, count: int, seed: int, parts: Parts, params: SamplingParams = PLAIN
) -> float:
    """Compare with and without drafts; return how many passes the latter takes for one."""
    plain = drive(decoder, LAW, some_requests(count, seed, parts, params))
    eager = drive(decoder, LAW, some_requests(count, seed, [*parts, FREE_DAVE], params), room=ROOM)
    for want, have in zip(plain, eager, strict=True):
        assert (have.answer, have.state.emitted_steps) == (want.answer, want.state.emitted_steps)
        assert (have.finish, have.outcomes[-1].stop_token) == (
            want.finish,
            want.outcomes[-1].stop_token,
        )
        assert len(have.outcomes) <= len(want.outcomes)
    return sum(len(r.outcomes) for r in plain) / sum(len(r.outcomes) for r in eager)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_static_with_drafts_is_static(temperature: float) -> None:
    params = SamplingParams(temperature=temperature, seed=5)
    assert check(host(), 150, 5, ["static"], params) > 1.1


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_static_with_drafts_is_static_for_2000_prompts(seed: int, temperature: float) -> None:
    params = SamplingParams(temperature=temperature, seed=seed)
    assert check(host(), 2000, seed, ["static"], params) > 1.1


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("params", [PLAIN, EDITED], ids=["plain", "edited"])
@pytest.mark.parametrize(
    "parts",
    [
        [{"name": "static", "strategy": "margin"}],
        [{"name": "static", "tokens_per_step": 2, "strategy": "entropy"}],
        ["random"],
        [{"name": "threshold", "threshold": 0.5}],
        [{"name": "klass", "threshold": 0.3, "divergence": 0.5}],
        [{"name": "local-leap", "anchor": 0.5, "relaxed": 0.3}, "credit"],
        [{"name": "threshold", "threshold": 0.5}, "eotp"],
        [
            "static",
            {
                "name": "ada-block",
                "delimiter_ids": [11, 12, 13, 14, 15],
                "threshold": 0.0,
                "share": 1.0,
            },
        ],
    ],
    ids=str,
)
def test_every_step_map_keeps_its_steps(
    full: bool, shift: bool, params: SamplingParams, parts: Parts
) -> None:
    check(host(full=full, shift=shift), 12, 3, parts, params)


def test_a_lone_canvas_is_fed_without_room() -> None:
    """No room, or a width of 1: the passes of the plain method, one by one."""
    (want,) = drive(host(), LAW, some_requests(1, 1, ["static"], PLAIN))
    for room, width in ((0, 8), (ROOM, 1), (7, 8)):
        parts: Parts = ["static", {"name": "free-dave", "width": width}]
        (have,) = drive(host(), LAW, some_requests(1, 1, parts, PLAIN), room=room)
        assert (have.answer, len(have.outcomes)) == (want.answer, len(want.outcomes))
        assert have.state.num_drafted == 0


def test_drafts_share_the_room() -> None:
    decoder = host()
    requests = some_requests(6, 2, ["static", FREE_DAVE], PLAIN)
    for room in (0, 8, 50, 100):
        for run in drive(decoder, LAW, requests, room=room, budget=room):
            assert run.finish


def test_the_report_counts_drafts() -> None:
    decoder = host()
    (run,) = drive(decoder, LAW, some_requests(1, 4, ["static", FREE_DAVE], PLAIN), room=ROOM)
    report = decoder.report(run.state)
    assert report["unmasker"] == ["static", "free-dave"]
    assert 0 <= report["accepted"]["free-dave"] <= report["drafted"]["free-dave"]
    assert len(report["steps"]) == len(run.answer)
    assert max(report["steps"]) <= len(run.outcomes)


def a_canvas() -> Canvas:
    ids = np.array([1, 2, 0, 0, 0, 0])
    return Canvas(10, ids, np.array([0, 0, 1, 1, 1, 1], np.bool_), 16, 10, block_stop=16)


def test_drafts_fill_holes_in_the_order_of_the_guess() -> None:
    guess = PendingDraws(np.array([14, 12, 13, 15]), np.array([5, 6, 7, 8]), np.zeros(4, np.bool_))
    canvas = a_canvas()
    drafts = draft_canvases(canvas, guess, 9, None)
    assert [draft.input_ids(99).tolist() for draft in drafts] == [
        [1, 2, 99, 99, 99, 99],
        [1, 2, 99, 99, 5, 99],
        [1, 2, 6, 99, 5, 99],
        [1, 2, 6, 7, 5, 99],
    ]
    assert len(draft_canvases(canvas, guess, 1, None)) == 2
    assert canvas.masked.sum() == 4


def test_a_drafted_end_closes_what_is_behind_it() -> None:
    ends = np.array([False, True, False, False])
    guess = PendingDraws(np.array([14, 12, 13, 15]), np.array([5, 7, 6, 8]), ends)
    assert (
        len(draft_canvases(a_canvas(), guess, 9, None)) == 2
    )  # behind 12 there is nothing to be drawn


def test_only_an_equal_draft_is_proved() -> None:
    guess = PendingDraws(np.array([14, 12, 13, 15]), np.array([5, 6, 7, 8]), np.zeros(4, np.bool_))
    drafts = draft_canvases(a_canvas(), guess, 9, None)
    made = a_canvas()
    one = np.zeros(1, np.bool_)
    made.unmask(np.array([14]), np.array([5]), one, 1)
    assert matching_draft(made, drafts, 0) == 1
    made.unmask(np.array([12]), np.array([4]), one, 2)  # another token than drafted
    assert matching_draft(made, drafts, 1) is None
    made = a_canvas()
    made.unmask(np.array([12, 14]), np.array([6, 5]), np.zeros(2, np.bool_), 1)
    assert matching_draft(made, drafts, 0) == 2  # two holes in one step
    assert matching_draft(made, drafts, 2) is None
