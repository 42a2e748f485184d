"""vLLM's own sampler and structured output, called as its model runner and scheduler call them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer
from vllm.v1.sample.logits_processor import LogitsProcessors
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p
from vllm.v1.sample.sampler import Sampler
from vllm.v1.structured_output.backend_types import StructuredOutputOptions
from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend
from vllm.v1.structured_output.utils import apply_grammar_bitmask


@dataclass
class Grammars:
    """One automaton for each sequence, made when it is first seen."""

    backend: Any
    schema: str
    stop_token_ids: set[int]
    bitmask: Tensor
    found: dict[str, Any] = field(default_factory=dict)
    num_refused: int = 0  # tokens of plait's that the automaton does not allow

    def of(self, name: str) -> Any:
        """Return the automaton of a sequence."""
        if name not in self.found:
            kind = StructuredOutputOptions.JSON
            self.found[name] = self.backend.compile_grammar(kind, self.schema, self.stop_token_ids)
        return self.found[name]

    def mask(self, names: Sequence[str], batch: Any, logits: Tensor) -> None:
        """Write -inf where a sequence's automaton allows no token."""
        for i, name in enumerate(names):
            self.of(name).fill_bitmask(self.bitmask, i)
        told = SimpleNamespace(
            structured_output_request_ids=list(names),
            grammar_bitmask=self.bitmask[: len(names)].numpy(),
        )
        apply_grammar_bitmask(SimpleNamespace(scheduled_spec_decode_tokens={}), told, batch, logits)

    def accept(self, names: Sequence[str], tokens: Sequence[int]) -> None:
        """Advance the automata by a token each."""
        for name, token in zip(names, tokens, strict=True):
            self.num_refused += not self.of(name).accept_tokens(name, [token])


class Theirs:
    """Samples the rows of a step as vLLM would, with one temperature and top_p for all."""

    def __init__(self, size: int, temperature: float, top_p: float) -> None:
        self._sampler = Sampler()
        self._temperature = torch.full((size,), temperature)
        self._top_p = torch.full((size,), top_p) if top_p < 1.0 else None
        zeros = torch.zeros(size)
        self._metadata = SamplingMetadata(
            temperature=self._temperature if temperature else None,
            all_greedy=not temperature,
            all_random=bool(temperature),
            top_p=self._top_p,
            top_k=None,
            generators={},
            max_num_logprobs=None,
            no_penalties=True,
            prompt_token_ids=None,
            frequency_penalties=zeros,
            presence_penalties=zeros,
            repetition_penalties=zeros,
            output_token_ids=[],
            allowed_token_ids_mask=None,
            bad_words_token_ids={},
            logitsprocs=LogitsProcessors(),
        )

    def sample(self, logits: Tensor) -> list[int]:
        """Return a token for each row; the logits are changed."""
        output = self._sampler(logits=logits, sampling_metadata=self._metadata)
        return [token for (token,) in output.sampled_token_ids.tolist()]

    def scores(self, logits: Tensor) -> Tensor:
        """Return scores whose softmax is the distribution that it draws from; not timed.

        Of tokens as likely as the last one that it keeps, it keeps some by their order; here all
        are left, as plait has it.
        """
        hot = logits.float() / self._temperature[:, None]
        kept = torch.as_tensor(apply_top_k_top_p(hot.clone(), None, self._top_p))
        least = kept.masked_fill(kept == -torch.inf, torch.inf).amin(-1, keepdim=True)
        return hot.masked_fill(hot < least, -torch.inf)


def grammars(
    config: Any, folder: Path, schema: str, stop_token_ids: Collection[int], size: int
) -> Grammars:
    """Return vLLM's structured output for a schema."""
    backend = XgrammarBackend(
        config,
        tokenizer=AutoTokenizer.from_pretrained(folder),
        vocab_size=config.model_config.get_vocab_size(),
    )
    bitmask = backend.allocate_token_bitmask(size)
    return Grammars(backend, schema, set(stop_token_ids), bitmask)
