"""Beam search on the default model against transformers, in fp32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from plait.decoders.contract.decoding import DecodingSpec, MethodSpec
from plait.decoders.contract.search import SearchRequest
from plait.decoders.search.beam import BeamOptions, BeamSearch
from plait.server.models.catalog import ModelFiles
from plait.server.models.transformer import Transformer
from plait.server.prompt.tokenizer import Tokenizer, load_tokenizer
from tests.fixtures.engines import model_engine, request, run
from tests.fixtures.search_driver import Found, SearchDriver, naive_beam
from tests.parity.test_smollm2 import QUESTIONS

pytestmark = [pytest.mark.parity, pytest.mark.slow]

TOLERANCE = 1e-3  # of a cumulative log-probability; scores that are closer may change places


@pytest.fixture(scope="module")
def tokenizer(smollm2_files: ModelFiles) -> Tokenizer:
    return load_tokenizer(smollm2_files)


def prompt_of(tokenizer: Tokenizer, question: str) -> list[int]:
    text = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    return tokenizer.encode(text, special=True)


def beams(
    model: Transformer, prompt: Sequence[int], max_tokens: int, width: int, **fields: Any
) -> list[Found]:
    """Return what the engine answers, best first."""
    options = {"beam_width": width, "length_penalty": fields.pop("length_penalty", 1.0)}
    decoding = DecodingSpec(search=MethodSpec("beam", options))
    each = request("r", prompt, max_tokens, n=width, decoding=decoding, **fields)
    answers = run(model_engine(model), [each])
    found = []
    for i in range(width):
        last = answers["r", i].deltas[-1]
        assert last.search is not None
        found.append(Found(tuple(answers["r", i].tokens), last.finish_reason, last.search.score))
    return found


def check(have: Sequence[Found], want: Sequence[tuple[Sequence[int], float]]) -> None:
    """Assert equal scores in order, and equal texts but where scores tie."""
    assert [found.score for found in have] == pytest.approx(
        [score for _, score in want], abs=TOLERANCE
    )
    for found in have:
        near = [tuple(tokens) for tokens, score in want if abs(score - found.score) < TOLERANCE]
        assert found.tokens in near


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_beams_of_a_fixed_length_equal_transformers(
    smollm2: Transformer, peer: Any, tokenizer: Tokenizer, penalty: float
) -> None:
    """Where no text ends early, vLLM's rules and those of transformers are the same."""
    width, length = 4, 8
    for question in QUESTIONS[:2]:
        prompt = prompt_of(tokenizer, question)
        want = peer.generate(
            torch.tensor([prompt]),
            num_beams=width,
            num_return_sequences=width,
            do_sample=False,
            max_new_tokens=length,
            early_stopping="never",
            length_penalty=penalty,
            eos_token_id=None,
            pad_token_id=0,
            output_scores=True,
            return_dict_in_generate=True,
        )
        texts = [row[len(prompt) :].tolist() for row in want.sequences]
        scores = want.sequences_scores.tolist()
        have = beams(smollm2, prompt, length, width, length_penalty=penalty)
        check(have, list(zip(texts, scores, strict=True)))


def test_beams_that_end_equal_a_plain_beam_search_over_the_peer(
    smollm2: Transformer, peer: Any, tokenizer: Tokenizer
) -> None:
    """Texts that end with a stop token, by vLLM's rules, over the logits of transformers."""
    ended = 0
    for question in ("What is the capital of France?", "What is 17 * 23?"):
        prompt = prompt_of(tokenizer, question)
        stops = [tokenizer.encode("<|im_end|>", special=True)[0]]

        def law(output: tuple[int, ...], prompt: Sequence[int] = tuple(prompt)) -> Sequence[float]:
            logits = peer(torch.tensor([[*prompt, *output]])).logits[0, -1].double()
            found: list[float] = logits.log_softmax(0).tolist()
            return found

        asked = SearchRequest(3, 9, 0)
        search = BeamSearch(BeamOptions(beam_width=3))
        driver = SearchDriver(search, law, frozenset(stops), asked)
        want = naive_beam(driver, 3, 1.0)
        have = beams(smollm2, prompt, 9, 3, stop_token_ids=stops)
        check(have, [(found.tokens, found.score) for found in want])
        ended += sum(found.finish == "stop" for found in have)
    assert ended > 0
