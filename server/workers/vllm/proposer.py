"""The class that vLLM makes where a custom drafter is configured; it asks the decoder's sampler."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Propose = Callable[[Sequence[Sequence[int]]], list[list[int]]]


class DecoderProposer:
    """A drafter of vLLM's method `custom_class`.

    vLLM makes it before there is a sampler: `connect` comes later, and until then nothing is
    drafted.
    """

    def __init__(self, vllm_config: object) -> None:
        """Take vLLM's configuration, of which nothing is needed."""
        self._propose: Propose | None = None

    def connect(self, propose: Propose) -> None:
        """Ask this function for drafts from now on."""
        self._propose = propose

    def load_model(self, model: object) -> None:
        """Load nothing; vLLM calls it on every drafter."""

    def propose(
        self,
        sampled_token_ids: Sequence[Sequence[int]],
        num_tokens_no_spec: object,
        token_ids_cpu: object,
        slot_mappings: object = None,
    ) -> list[list[int]]:
        """Return a draft for each request of the step."""
        if self._propose is None:
            return [[] for _ in sampled_token_ids]
        return self._propose(sampled_token_ids)
