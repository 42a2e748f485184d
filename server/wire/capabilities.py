"""Optional features of workers: what some method or route needs, and which kinds of worker have it.

A worker tells which it has in ModelInfo.capabilities; a request that needs another is refused by
name before it is queued, and told which kinds of worker have it. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

CAPABILITIES: Mapping[str, str] = {
    "tree": "drafts that are trees, as of `aded` and the drafter heads",
    "search": "searches: `best_of`, `beam`, `smc`, `a-star` and the others",
    "prompt_logprobs": "`prompt_logprobs`, and `echo` with `logprobs`",
    "continuations": "`/v1/classify`",
    "draft_store": "`/v1/draft_store`",
    "draft_model": "drafts by a second model, with `--draft-model`",
    "canvas": "canvases: unmaskers, `infill`",
    "full_attention": "canvases that see the text on both sides",
    "shadow": "`wino`, whose rows check others",
}
AUTOREGRESSIVE = ("tree", "search", "prompt_logprobs", "continuations", "draft_store")
DIFFUSION = ("canvas", "search")
VLLM = ("prompt_logprobs", "draft_store")


@dataclass(frozen=True, slots=True)
class WorkerKind:
    """A kind of worker, with a kind of model."""

    title: str
    article: str  # how a sentence names one
    has: tuple[str, ...]
    may_have: tuple[str, ...] = ()  # settings or the model's files decide


KINDS: Mapping[str, WorkerKind] = {
    "autoregressive": WorkerKind(
        "native", "a native worker with an autoregressive model", AUTOREGRESSIVE, ("draft_model",)
    ),
    "diffusion": WorkerKind(
        "native, diffusion model",
        "a native worker with a diffusion model",
        DIFFUSION,
        ("full_attention", "shadow"),
    ),
    "vllm": WorkerKind("vllm", "a vllm worker", VLLM),
}


def who_has(capability: str) -> str:
    """Return a sentence that names the kinds of worker that have a capability, or may have it."""
    kinds = [each for each in KINDS.values() if capability in each.has + each.may_have]
    return f"It takes {' or '.join(kind.article for kind in kinds)}." if kinds else ""
