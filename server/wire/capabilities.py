"""Optional features of workers: what some method or route needs, and which kinds of worker have it.

A worker tells which it has in ModelInfo.capabilities; a request that needs another is refused by
name before it is queued. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping

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
# What settings or the model's files decide on, by the kind of worker and model.
OPTIONAL: Mapping[str, tuple[str, ...]] = {
    "autoregressive": ("draft_model",),
    "diffusion": ("full_attention", "shadow"),
    "vllm": (),
}
