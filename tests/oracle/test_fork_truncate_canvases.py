"""States of diffusion sequences are derived from their text: cut, forked, and built again.

Law: a state that is cut to n tokens behaves as one that was built from the first n tokens; a fork
and its origin never see each other again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from plait.decoders.contract.decoder import DecodeRequest
from plait.decoders.contract.decoding import PromptExtras
from plait.decoders.contract.registry import MethodError
from plait.decoders.contract.text import Text
from plait.decoders.diffusion.decoder import DiffusionDecoder
from plait.decoders.diffusion.spec import DiffusionSpec
from plait.decoders.sampling.params import SamplingParams
from tests.fixtures.canvas_driver import Run, begin, decode_request, finish, step
from tests.fixtures.constraint_vocabularies import BYTES_AND_PIECES, EOS, GRAMMARS, load
from tests.fixtures.hash_model import HashLaw

LAW = HashLaw(vocab=len(BYTES_AND_PIECES.token_bytes) + 1, radius=3, coupling=0.8)
BLOCK, ROOM = 8, 200
EDITED = SamplingParams(seed=3, frequency_penalty=0.6, bad_words=((3,), (4, 5)), logprobs=2)
FULL = {"canvas": {"attention": "full"}}
THRESHOLD = {"name": "threshold", "threshold": 0.1}
KINDS: dict[str, dict[str, Any]] = {
    "auto": {},
    "off": {"unmasker": "off"},
    "credit and klass": {"unmasker": ["credit", {"name": "klass", "threshold": 0.1}, "free-dave"]},
    "wino": {"unmasker": {"name": "wino", "draft": 0.1, "verify": 0.3}},
    "local-leap": {"unmasker": [{"name": "local-leap", "anchors": "previous_step"}, "eotp"]},
    "full": {"unmasker": ["random", "free-dave"], **FULL},
    "prefix-cache": {"unmasker": [THRESHOLD, "prefix-cache"], **FULL},
    "dual-cache": {"unmasker": [THRESHOLD, "dual-cache"], **FULL},
    "dkv-cache": {"unmasker": [THRESHOLD, "dkv-cache"], **FULL},
    "recap": {"unmasker": [THRESHOLD, "recap"], **FULL},
    "ada-block": {"unmasker": [{"name": "ada-block", "delimiter_ids": [1, 3, 4]}], **FULL},
    "infill": {"unmasker": ["static", "free-dave"], **FULL},
}
CACHES = {"prefix-cache", "dual-cache", "dkv-cache", "recap"}  # approximate: a fork has none yet
GRAMMAR_KINDS = ["auto", "off", "credit and klass", "wino", "full", "recap"]
Case = tuple[str, bool, SamplingParams, bool]
PLAIN = SamplingParams(temperature=1.0, seed=7)
CASES: list[Case] = [
    *((kind, False, PLAIN, False) for kind in KINDS),
    *((kind, True, PLAIN, False) for kind in ("auto", "off", "full")),
    *((kind, False, EDITED, False) for kind in ("auto", "credit and klass", "full", "infill")),
    *((kind, False, PLAIN, True) for kind in GRAMMAR_KINDS),
    ("auto", False, EDITED, True),
]
cases = pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0]}, {c[1]}, {c[2].seed}, {c[3]}")


def decoder(case: Case) -> DiffusionDecoder:
    spec = DiffusionSpec(
        LAW.mask_id, (EOS,), "block", BLOCK, also_full=True, shift=case[1], canvas=24
    )
    return DiffusionDecoder(spec, LAW.vocab)


def request(case: Case, length: int) -> DecodeRequest:
    """Return the case's request, with a prompt of some length."""
    kind, _, params, is_constrained = case
    prompt = [random.Random(length).randrange(20) for _ in range(length)]
    made = decode_request(prompt, 20, KINDS[kind], params=params, stops=frozenset({EOS}))
    if kind == "infill":
        made = replace(made, extras=PromptExtras(suffix_token_ids=[4, 2]))
    return replace(made, constraint=load(*GRAMMARS[0])) if is_constrained else made


def ended(run: Run) -> tuple[list[int], str | None, list[Any]]:
    """Return all that leaves a sequence: tokens, why it ended, logprobs."""
    return run.answer, run.finish, [entry for o in run.outcomes for entry in o.logprobs]


def advanced(case: Case, length: int, passes: int) -> tuple[DiffusionDecoder, Run]:
    """Return a decoder and a run that has made some passes, or all but the last."""
    host, want = decoder(case), begin(decoder(case), request(case, length))
    finish(decoder(case), LAW, [want], room=ROOM)
    run = begin(host, request(case, length))
    for _ in range(min(passes, len(want.outcomes) - 1)):
        step(host, LAW, [run], room=ROOM)
    return host, run


def built(case: Case, length: int, text: Text) -> Run:
    """Return the end of a sequence that was built from a text with output."""
    host, made = decoder(case), request(case, length)
    if made.constraint is not None:
        assert all(made.constraint.accept_token(token) for token in text.output)
    run = begin(host, replace(made, text=text))
    finish(host, LAW, [run], room=ROOM)
    return run


def taken(host: DiffusionDecoder, run: Run, text: Text, state: Any) -> Run:
    """Return a run of a state of the decoder's for a text, with what is cached as engines do."""
    size = host.attention_block_size(state)
    cached = min(run.cached, (len(text) - 1) // size * size) if size else 0
    return Run(state, list(text), text.prompt_length, cached)


@cases
def test_a_state_that_was_cut_is_one_that_was_built(case: Case) -> None:
    num_cut = 0
    for length, passes in ((1, 2), (8, 9), (13, 5)):
        host, run = advanced(case, length, passes)
        text = run.state.text
        cut = text.prompt_length + text.num_output * passes // 10
        num_cut += len(text) > cut
        text.truncate(cut)
        want = built(case, length, text.with_noise(text.noise))
        have = taken(host, run, text, host.truncate(run.state, text))
        finish(host, LAW, [have], room=ROOM)
        assert ended(have) == ended(want)
        assert len(have.outcomes) == len(want.outcomes)
        assert len(have.state.emitted_passes) == len(have.answer)
    assert num_cut > 0


@cases
@pytest.mark.parametrize("is_cut", [False, True])
def test_a_fork_and_its_origin_never_see_each_other(case: Case, is_cut: bool) -> None:
    """Whoever runs first, and whatever becomes of the other: each comes to its own end."""
    for length, passes in ((5, 4), (8, 12)):
        ends: list[list[Any]] = []
        for order in ((0, 1), (1, 0), (0,), (1,)):
            host, run = advanced(case, length, passes)
            text = run.state.text.fork(5)
            if is_cut:
                text.truncate(text.prompt_length + text.num_output // 2)
            child = taken(host, run, text, host.fork(run.state, text))
            both = [run, child]
            found: dict[int, Any] = {}
            if len(order) == 1:
                spoil(both[1 - order[0]].state)
            for i in order:
                finish(host, LAW, [both[i]], room=ROOM)
                found[i] = ended(both[i]), list(both[i].state.emitted_passes)
                spoil(both[i].state)
            ends.append([found.get(i) for i in (0, 1)])
        assert ends[0] == ends[1] == [ends[2][0], ends[3][1]]
        whole = begin(decoder(case), request(case, length))
        finish(decoder(case), LAW, [whole], room=ROOM)
        assert ends[2][0] == (ended(whole), whole.state.emitted_passes)


def spoil(state: Any) -> None:
    """Overwrite everything of a state that can be changed."""
    canvas = state.canvas
    for array in (canvas.ids, canvas.masked, canvas.unmasked_in, canvas.is_end, canvas.forced):
        array[:] = 1
    canvas.logprobs.clear()
    for each in (state.emitted_passes, state.emitted_steps, state.text.token_ids):
        each.clear()
    if state.sampling.counts is not None:
        for _ in range(50):
            state.sampling.observe(9)
    if state.constraint is not None:
        state.constraint.matcher._rollback(len(state.constraint.matcher._accepted))


@cases
def test_a_fork_keeps_the_work_in_progress(case: Case) -> None:
    """With its origin's noise it goes the same way, in the same steps."""
    if case[0] in CACHES:
        pytest.skip("a fork computes its own keys and values")
    for length in (5, 8):
        host, run = advanced(case, length, 4)
        text = run.state.text.with_noise(run.state.text.noise)
        child = taken(host, run, text, host.fork(run.state, text))
        finish(host, LAW, [run, child], room=ROOM)
        assert child.answer == run.answer
        assert child.state.emitted_steps == run.state.emitted_steps


@cases
def test_a_fork_that_goes_on_otherwise_is_built_from_its_text(case: Case) -> None:
    host, run = advanced(case, 6, 6)
    text = run.state.text.fork(1)
    text.truncate(text.prompt_length + text.num_output // 2)
    text.extend(other_tokens(case, text))
    child = taken(host, run, text, host.fork(run.state, text))
    assert len(child.state.emitted_passes) == text.num_output
    want = built(case, 6, text.with_noise(text.noise))
    finish(host, LAW, [child], room=ROOM)
    assert ended(child) == ended(want)


def other_tokens(case: Case, text: Text) -> Sequence[int]:
    """Return tokens that may follow a text."""
    constraint = request(case, 6).constraint
    if constraint is None:
        return [11, 12]
    assert all(constraint.accept_token(token) for token in text.output)
    legal: Callable[[int], bool] = lambda token: constraint.fork().accept_token(token)  # noqa: E731
    return [token for token in range(LAW.vocab - 1, 0, -1) if token != EOS and legal(token)][:1]


def test_an_illegal_text_is_a_fault_of_its_own() -> None:
    case: Case = ("auto", False, PLAIN, True)
    host, run = advanced(case, 6, 3)
    text = run.state.text.fork(1)
    text.extend([0, 0, 0, 0, 0, 0])
    assert "refuses" in host.fork(run.state, text).fault
    assert not run.state.fault


def test_a_search_is_told_that_there_are_no_alternatives() -> None:
    case: Case = ("auto", False, PLAIN, False)
    made = request(case, 3)
    asked = replace(made, search=replace(made.search, num_alternatives=2))
    with pytest.raises(MethodError, match="alternatives"):
        begin(decoder(case), asked)
    run = begin(decoder(case), replace(made, search=replace(made.search, logprobs=True)))
    finish(decoder(case), LAW, [run], room=ROOM)
    assert [e.token_id for o in run.outcomes for e in o.logprobs] == run.answer
    assert np.isfinite([e.logprob for o in run.outcomes for e in o.logprobs]).all()
