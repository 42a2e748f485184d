"""free-dave is lossless: same tokens, same steps in the same order, never more passes."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from plait.decoders.diffusion.branches import drafts_of, proved
from plait.decoders.diffusion.canvas import Canvas, Guess
from plait.decoders.diffusion.host import DiffusionDecoder
from plait.decoders.diffusion.spec import DiffusionSpec
from plait.decoders.diffusion.step import Ints
from plait.decoders.protocol import DecodeRequest
from plait.decoders.sampling.params import SamplingParams
from tests.fixtures.canvas_driver import Run, decode_request, drive
from tests.fixtures.hash_model import HashLaw

import numpy as np

LAW = HashLaw(radius=3, coupling=0.6)
ENDS = frozenset({7})
ROOM = 10_000


def decoder(block: int = 8, *, full: bool = False, shift: bool = False) -> DiffusionDecoder:
    attention = "full" if full else "block"
    spec = DiffusionSpec(LAW.mask_id, (7,), attention, block, shift=shift, canvas=16)
    return DiffusionDecoder(spec, LAW.vocab)


def requests(count: int, seed: int, temperature: float, unmasker: Any) -> list[DecodeRequest]:
    rng = random.Random(seed)
    return [
        decode_request(
            [rng.randrange(LAW.vocab) for _ in range(rng.randint(1, 12))],
            rng.randint(1, 16),
            {"unmasker": unmasker},
            params=SamplingParams(temperature=temperature, seed=seed),
            stops=ENDS,
        )
        for _ in range(count)
    ]


def order(run: Run) -> list[tuple[int, int]]:
    """The step that settled each position, for all that is left of the last canvas's text."""
    return list(zip(run.state.order, run.answer, strict=True))


def check_lossless(
    host: DiffusionDecoder, count: int, seed: int, temperature: float, selector: Any
) -> tuple[int, int]:
    """Return the passes without drafts and with them."""
    plain = drive(host, LAW, requests(count, seed, temperature, selector))
    eager = drive(host, LAW, requests(count, seed, temperature, [selector, FREE_DAVE]), room=ROOM)
    for want, have in zip(plain, eager, strict=True):
        assert order(have) == order(want)
        assert have.finish == want.finish
        assert len(have.outcomes) <= len(want.outcomes)
    return sum(len(r.outcomes) for r in plain), sum(len(r.outcomes) for r in eager)


FREE_DAVE: Mapping[str, Any] = {"name": "free-dave", "width": 4}


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_free_dave_equals_static(seed: int, temperature: float) -> None:
    """2,000 prompts for each of 3 seeds, greedy and sampled."""
    plain, eager = check_lossless(decoder(), 1000, seed, temperature, "static")
    print(seed, temperature, plain, eager)
    assert eager < plain
