"""Every family of diffusion models, on tiny random weights, against plain torch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from plait.kernels.kv_cache import KVCache
from plait.kernels.paged_attention import BLOCK_SIZE, FULL
from plait.server.models.catalog import resolve
from plait.server.models.load import load_model
from plait.server.models.transformer import Transformer
from tests.fixtures.diffusion_layouts import MASK
from tests.fixtures.tiny_models import write_tiny_model
from tests.parity.feeding import Piece, feed
from tests.parity.plain_diffusion import PlainModel, all_see_all, blocks_see_back

pytestmark = pytest.mark.parity

FAMILIES = (
    *("sdar", "llada", "Dream", "Fast_dLLM_Qwen", "llada2_moe"),
    *("a2d-llama", "a2d-qwen2", "a2d-qwen3"),
)
LENGTH = 48
TEXT = [(7 * i * i + 3) % 299 + 1 for i in range(LENGTH)]
HOLES = [MASK if i % 3 == 1 or i > 35 else token for i, token in enumerate(TEXT)]
Pair = tuple[Transformer, PlainModel]


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The same random weights in plait and in plain torch."""
    folder = write_tiny_model(tmp_path_factory.mktemp("model"), model_type=request.param)
    return load_model(resolve(str(folder)), weights="fp32"), PlainModel(folder)


def same(have: Tensor, want: Tensor) -> None:
    """Compare fp32 logits with float64's, within 1e-5 of the greatest of them.

    Over all families, masks and both kinds of kernels the distance is at most 2.1e-6 of it, and
    1.9e-6 where plain torch runs in fp32 as well: that is fp32's rounding. Entry by entry it can be
    1.04e-5, absolute and relative, so 1e-5 would be luck there. The mask token's logit is -inf in
    plait and nothing special in the file.
    """
    assert torch.equal(have[:, MASK], torch.full((len(have),), -torch.inf))
    have, want = have[:, 1:].double(), want[:, 1:]
    torch.testing.assert_close(have, want, atol=1e-5 * float(want.abs().max()), rtol=0)


def fill(model: Transformer, kv: KVCache, token_ids: list[int], size: int) -> Tensor:
    """Feed a text block by block, each with holes first, then as it is; return the logits."""
    rows = []
    for start in range(0, len(token_ids), size):
        block = token_ids[start : start + size]
        feed(model, kv, Piece([MASK] * len(block), range(3), start, FULL))
        rows.append(feed(model, kv, Piece(block, range(3), start, FULL)))
    return torch.cat(rows)


def test_a_whole_canvas(pair: Pair) -> None:
    model, plain = pair
    want = plain.logits(HOLES, all_see_all(LENGTH))
    assert want.std() > 0.1
    same(feed(model, model.new_kv_cache(3), Piece(HOLES, range(3), 0, FULL)), want)


@pytest.mark.parametrize("size", [1, 4, 16, 32])
def test_block_by_block_with_a_cache(pair: Pair, size: int) -> None:
    model, plain = pair
    want = plain.logits(HOLES, blocks_see_back(LENGTH, size))
    same(fill(model, model.new_kv_cache(3), HOLES, size), want)


def test_a_cached_block_has_the_bits_of_a_fresh_one(pair: Pair) -> None:
    model, _ = pair
    first, second = model.new_kv_cache(3), model.new_kv_cache(3)
    fill(model, first, HOLES, 8)
    pieces = [Piece(HOLES[s : s + 8], range(3), s, FULL) for s in range(0, LENGTH, 8)]
    feed(model, second, *pieces)
    assert torch.equal(first.k, second.k)
    assert torch.equal(first.v, second.v)


def test_neighbours_change_no_bits(pair: Pair) -> None:
    model, _ = pair
    canvas = Piece(HOLES, range(3), 0, FULL)
    alone = feed(model, model.new_kv_cache(3), canvas)
    others = [Piece(TEXT[:5], [3]), Piece(TEXT, range(4, 7), 0, FULL)]
    together = feed(model, model.new_kv_cache(7), others[0], canvas, others[1])
    assert torch.equal(together[5 : 5 + LENGTH], alone)
    assert LENGTH == 3 * BLOCK_SIZE


@pytest.mark.parametrize("family", FAMILIES)
def test_the_naive_kernels_agree(tmp_path: Path, family: str) -> None:
    folder = write_tiny_model(tmp_path, model_type=family)
    model = load_model(resolve(str(folder)), weights="fp32", reference=True)
    plain = PlainModel(folder)
    whole = feed(model, model.new_kv_cache(3), Piece(HOLES, range(3), 0, FULL))
    same(whole, plain.logits(HOLES, all_see_all(LENGTH)))
    cached = fill(model, model.new_kv_cache(3), HOLES, 4)
    same(cached, plain.logits(HOLES, blocks_see_back(LENGTH, 4)))
