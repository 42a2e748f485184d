"""The diffusion host against a reference that recomputes everything, one sequence at a time."""

from __future__ import annotations

import random

import pytest

from plait.decoders.diffusion.decoder import DiffusionDecoder
from plait.decoders.diffusion.spec import DiffusionSpec
from plait.decoders.sampling.params import SamplingParams
from tests.fixtures.canvas_driver import decode_request, drive
from tests.fixtures.hash_model import HashLaw, Rules, naive_text

LAW = HashLaw()
END = 7


def spec_of(rules: Rules) -> DiffusionSpec:
    return DiffusionSpec(
        mask_id=LAW.mask_id,
        eos_ids=(END,),
        attention="full" if rules.full else "block",
        block_size=rules.block,
        shift=rules.shift,
        canvas=rules.canvas,
    )


def host(rules: Rules) -> DiffusionDecoder:
    return DiffusionDecoder(spec_of(rules), LAW.vocab)


def some_prompts(count: int, seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(LAW.vocab) for _ in range(rng.randint(1, 40))] for _ in range(count)]


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("block", [1, 4, 8, 16, 32])
@pytest.mark.parametrize("threshold", [2.0, 0.6])
def test_host_equals_reference(
    full: bool, shift: bool, temperature: float, block: int, threshold: float
) -> None:
    ends = frozenset({END, 8, 9})
    rules = Rules(block, full, shift, threshold, ends, canvas=24)
    method = {"name": "threshold", "threshold": threshold} if threshold < 1 else "static"
    rng = random.Random(block)
    for i, prompt in enumerate(some_prompts(6, seed=block)):
        params = SamplingParams(temperature=temperature, seed=i)
        max_tokens = rng.randint(1, 50)
        want, passes = naive_text(LAW, rules, prompt, params, max_tokens)
        request = decode_request(
            prompt, max_tokens, {"unmasker": method}, params=params, stops=ends
        )
        (run,) = drive(host(rules), LAW, [request])
        assert run.answer == want
        assert run.finish == ("length" if len(want) == max_tokens else "stop")
        assert len(run.outcomes) <= passes  # a text may end before its last block is full
