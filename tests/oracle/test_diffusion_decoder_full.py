"""Full attention: rows refreshed in place, evictions, growth, and text between text."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from plait.decoders.contract.decoder import DraftBudget
from plait.decoders.contract.decoding import PromptExtras
from plait.decoders.diffusion.decoder import DiffusionDecoder
from plait.decoders.diffusion.spec import DiffusionSpec
from plait.decoders.sampling.params import SamplingParams
from tests.fixtures.canvas_driver import decode_request, drive, start
from tests.fixtures.hash_model import HashLaw, Ints, Rules, draw, naive_text

LAW = HashLaw(radius=8)
END = 7
CACHES: list[Any] = [
    "prefix-cache",
    "dual-cache",
    "dkv-cache",
    {"name": "dkv-cache", "refresh": 3},
    "recap",
]


def host(*, shift: bool = False, canvas: int = 64) -> DiffusionDecoder:
    spec = DiffusionSpec(LAW.mask_id, (END,), "full", 8, shift=shift, canvas=canvas)
    return DiffusionDecoder(spec, LAW.vocab)


def some_text(rng: random.Random, most: int = 20) -> list[int]:
    return [rng.randrange(LAW.vocab) for _ in range(rng.randint(1, most))]


@pytest.mark.parametrize("cache", CACHES, ids=str)
@pytest.mark.parametrize("shift", [False, True])
def test_evictions_change_nothing_that_a_cache_has_made(cache: Any, shift: bool) -> None:
    """Stale rows are part of what a cached canvas sees: lost ones are made again, step by step."""
    decoder, rng = host(shift=shift, canvas=24), random.Random(3)
    options = {"unmasker": [{"name": "threshold", "threshold": 0.3}, cache]}
    requests = [
        decode_request(
            some_text(rng), 60, options, params=SamplingParams(seed=i), stops=frozenset({END})
        )
        for i in range(8)
    ]
    want = drive(decoder, LAW, requests)
    for evict in ({1}, {2, 3, 11}, {5, 6, 7, 8, 9, 20}):
        have = drive(decoder, LAW, requests, evict=frozenset(evict))
        assert [run.answer for run in have] == [run.answer for run in want]
        assert [run.state.emitted_passes for run in have] == [
            run.state.emitted_passes for run in want
        ]


@pytest.mark.parametrize("shift", [False, True])
def test_a_cache_that_refreshes_every_step_is_none(shift: bool) -> None:
    rng = random.Random(4)
    prompts = [some_text(rng) for _ in range(6)]
    plain, cached = (
        drive(
            host(shift=shift),
            LAW,
            [decode_request(p, 30, {"unmasker": ["static", *parts]}) for p in prompts],
        )
        for parts in ([], [{"name": "dkv-cache", "refresh": 1}])
    )
    assert [run.answer for run in cached] == [run.answer for run in plain]


@pytest.mark.parametrize("cache", CACHES, ids=str)
def test_a_cache_feeds_fewer_rows(cache: Any) -> None:
    decoder = host()
    plain, cached = (
        drive(decoder, LAW, [decode_request([1, 2, 3], 40, {"unmasker": ["static", *parts]})])[0]
        for parts in ([], [cache])
    )
    assert plain.num_rows == 43 * len(plain.outcomes)
    assert cached.num_rows / len(cached.outcomes) < 40
    assert decoder.attention_block_size(cached.state) == 0


def test_an_infill_fills_between_two_texts() -> None:
    """One canvas whose suffix is settled; ends are fillers and stay in the text."""
    rng = random.Random(1)
    for shift in (False, True):
        decoder = host(shift=shift)
        for i in range(10):
            prompt, suffix, size = some_text(rng), some_text(rng), rng.randint(1, 12)
            params = SamplingParams(temperature=0.0, seed=i)
            request = decode_request(
                prompt,
                size,
                {"unmasker": "static"},
                params=params,
                stops=frozenset({END, 8, 9, 10}),
                extras=PromptExtras(suffix_token_ids=suffix),
            )
            (run,) = drive(decoder, LAW, [request])
            holes = range(len(prompt), len(prompt) + size)
            ids = [*prompt, *[0] * size, *suffix]
            assert run.answer == naive_fill(ids, list(holes), params, 8, shift)
            assert run.finish is not None


def test_a_template_fills_its_holes_in_order() -> None:
    rng = random.Random(2)
    decoder = host()
    for i in range(10):
        ids = some_text(rng, 30) + some_text(rng, 10)
        spans = [[0, 1], [len(ids) // 2, len(ids) // 2 + 3], [len(ids) - 1, len(ids)]]
        spans = [span for span in spans if span[1] <= len(ids)] if len(ids) > 9 else [[0, 1]]
        holes = [at for start, stop in spans for at in range(start, stop)]
        params = SamplingParams(temperature=1.0, seed=i)
        extras = PromptExtras(holes=[(start, stop) for start, stop in spans])
        request = decode_request(
            ids, len(holes), {"unmasker": "static"}, params=params, extras=extras
        )
        (run,) = drive(decoder, LAW, [request])
        assert run.answer == naive_fill(ids, holes, params, 8, shift=False)


def test_the_text_grows_by_canvases() -> None:
    decoder = host(canvas=9)  # rounded to whole blocks: 16
    state = start(decoder, decode_request([1, 2, 3], 40, {"unmasker": "static"}))
    (first,) = decoder.propose([state], DraftBudget(0))
    assert len(first.token_ids) == 3 + 16
    (run,) = drive(decoder, LAW, [decode_request([1, 2, 3], 40, {"unmasker": "static"})])
    assert len(run.answer) == 40
    assert len(run.state.canvas.ids) == 43


def test_literal_mask_tokens_are_text() -> None:
    """A prompt may hold the mask token; it is never filled and never counted as a hole."""
    mask, params = LAW.mask_id, SamplingParams(temperature=0.0)
    for full in (False, True):
        spec = DiffusionSpec(mask, (), "full" if full else "block", 8)
        decoder = DiffusionDecoder(spec, LAW.vocab)
        for prompt in ([mask, 1, mask], [1, mask, mask], [*range(9), mask]):
            request = decode_request(prompt, 9, {"unmasker": "static"}, params=params)
            (run,) = drive(decoder, LAW, [request])
            want, passes = naive_text(LAW, Rules(8, full), prompt, params, 9)
            assert (run.answer, run.state.progress.passes) == (want, passes)
            assert mask not in run.answer


def naive_fill(
    ids: list[int], holes: list[int], params: SamplingParams, block: int, shift: bool
) -> list[int]:
    """Settle the surest hole of each run of `block` positions until none is left."""
    shown = np.array(ids)
    shown[holes] = LAW.mask_id
    left = list(holes)
    while left:
        end = left[0] + block
        while inside := [hole for hole in left if hole < end]:
            centers: Ints = np.array(inside)
            logits = LAW.logits(np.maximum(centers, 1) if shift else centers, shown)
            tokens = draw(logits, inside, params)
            exact = np.exp(logits.astype(np.float64))
            p = exact[np.arange(len(inside)), tokens] / exact.sum(axis=1)
            at = inside[int(p.argmax())]
            shown[at] = tokens[int(p.argmax())]
            left.remove(at)
    return [int(shown[hole]) for hole in holes]
