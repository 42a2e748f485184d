"""PPD: the text stays what it is, right guesses are accepted, and no prompt is ever remembered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from torch import Tensor

from plait.decoders.contract.costs import CostCurve
from plait.decoders.contract.decoder import DecodeRequest, DraftBudget
from plait.decoders.contract.text import Text
from plait.decoders.resolve import resolve_decoding
from plait.decoders.sampling.params import SamplingParams
from plait.decoders.speculative.context import DrafterContext
from plait.decoders.speculative.heads.prompt_trees import ROOT, PromptTree, PromptTreeRow, trees_for
from plait.decoders.speculative.speculator import Speculator
from plait.kernels.kv_cache import KVCache
from plait.kernels.paged_attention import AttentionMetadata
from tests.fixtures.drafting import drafted_by, speculating, texts
from tests.fixtures.engines import request, run
from tests.fixtures.random_requests import random_requests
from tests.fixtures.table_model import Forgetful, TableModel

VOCAB = 40
PROMPTS = 3
ACCURACY = np.array([[0.5, 0.2, 0.1], [0.4, 0.2, 0.1], [0.3, 0.1, 0.05]])
CHOICES: dict[str, Any] = {
    "published": {"name": "ppd", "preset": "published", "always": True},
    "small": {"name": "ppd", "length": 8, "always": True},
    "as it pays": "ppd",
    "behind n-gram": ["n-gram", {"name": "ppd", "length": 12, "always": True}],
}


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> DrafterContext:
    path: Path = tmp_path_factory.mktemp("heads") / "ppd.safetensors"
    accuracy = ACCURACY.astype(np.float32)
    save_file({"accuracy": accuracy, "accuracy_sampled": accuracy}, path)
    return DrafterContext(VOCAB, num_embeddings=PROMPTS, heads={"ppd": path})


DRAFTER = {"name": "ppd", "length": 12}


class Watching(TableModel):
    """Notes whether a cached position that some row sees ever held a prompt."""

    saw_prompt = False

    def forward(
        self,
        token_ids: Tensor,
        metadata: AttentionMetadata,
        kv: KVCache,
        read: Tensor | None = None,
    ) -> Tensor:
        for context, table in zip(metadata.context_lens, metadata.block_tables, strict=True):
            cached = kv.v[0, table.long(), 0].flatten()[: int(context)]
            self.saw_prompt |= bool((cached >= self.vocab_size).any())
        return super().forward(token_ids, metadata, kv, read)


@pytest.mark.parametrize("settings", [{}, {"num_blocks": 12}, {"max_step_tokens": 16}], ids=str)
@pytest.mark.parametrize("drafter", CHOICES.values(), ids=CHOICES)
def test_drafts_change_no_text(
    context: DrafterContext, drafter: Any, settings: dict[str, Any]
) -> None:
    requests = random_requests(24, VOCAB, seed=3)
    want = texts(speculating(context), drafted_by(requests, "off"))
    assert texts(speculating(context, **settings), drafted_by(requests, drafter)) == want


def test_the_cache_never_keeps_a_prompt(context: DrafterContext) -> None:
    model = Watching(VOCAB)
    run(
        speculating(context, model=model),
        drafted_by(random_requests(8, VOCAB, seed=5), CHOICES["small"]),
    )
    assert not model.saw_prompt


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_a_law_without_memory_is_guessed_right(context: DrafterContext, temperature: float) -> None:
    """Every step takes the path of best guesses, as far as the last step has asked ahead."""
    sampling = SamplingParams(temperature=temperature, seed=7)
    each = request("r", [1, 2, 3], 200, sampling=sampling)
    engine = speculating(context, model=Forgetful(VOCAB))
    answer = run(engine, drafted_by([each], CHOICES["published"]))["r", 0]
    trees, state = trees_for(ACCURACY, 64), 0
    for delta in answer.deltas[:10]:
        best = [row for row in trees[state].rows if row.rank == 0 and row.depth < state]
        depth = sum(_leads_on(trees[state], row) for row in best)
        assert len(delta.token_ids) == 1 + depth
        state = _prompts_on_best(trees[state], depth)
        assert state > 0


def _leads_on(tree: PromptTree, row: PromptTreeRow) -> bool:
    """Tell whether a row and all above it are best guesses."""
    return row.rank == 0 and (row.parent == ROOT or _leads_on(tree, tree.rows[row.parent]))


def _prompts_on_best(tree: PromptTree, depth: int) -> int:
    """Return how many prompts hang on the best path's node of a depth; 0: the text."""
    found = 0
    for row in tree.rows:
        node = row
        while node.is_prompt and node.parent != ROOT:
            node = tree.rows[node.parent]
        at = 0 if node.is_prompt else node.depth + 1
        if row.is_prompt and at == depth and (node.is_prompt or _leads_on(tree, node)):
            found = max(found, row.depth + 1)
    return found


def test_rows_fed_stay_within_max_draft(context: DrafterContext) -> None:
    model = TableModel(VOCAB)
    drafter = {"name": "ppd", "length": 32, "max_draft": 5, "always": True}
    run(speculating(context, model=model), drafted_by([request("r", [1, 2, 3], 20)], drafter))
    assert model.max_rows == 1 + 5


@pytest.mark.parametrize("price", [0.0, 0.02, 0.1, 0.5])
def test_the_budget_keeps_the_prompts_that_pay(context: DrafterContext, price: float) -> None:
    """A row's price, in passes, is what its expected tokens must be worth; parents stay."""
    costs = CostCurve({rows: 1 + price * (rows - 1) for rows in (1, 2, 64)})
    speculator = Speculator(context, costs)
    methods = resolve_decoding({"drafter": DRAFTER}).methods
    each = DecodeRequest(Text([1, 2]), SamplingParams(), 99, frozenset(), None, methods)
    member = speculator.start(each)
    assert member is not None
    (tree,) = speculator.propose([member], [64], DraftBudget(drafts=64, fed=1))
    offered = trees_for(ACCURACY, 12)[0].rows
    paces = [
        (1 + sum(row.value for row in offered[:count])) / (1 + price * count)
        for count in range(len(offered) + 1)
    ]
    assert len(tree) == int(np.argmax(paces))
    assert tree.token_ids == [VOCAB + i for i in range(len(tree))]
    assert tree.parents == [i - 1 for i in range(len(tree))]
