"""Statistics, logprobs, masks and cuts of rows: definitions, and C++ against the oracle."""

from __future__ import annotations

from itertools import product
from math import exp, inf, log

import pytest
import torch
from torch import Tensor

from plait.kernels import extension
from tests.fixtures.backends import COMPILED, REFERENCE, KernelBackend, both_backends

SHAPES = [(1, 2), (1, 5), (3, 33), (2, 1000), (2, 4096), (2, 5000)]
compiled = pytest.mark.skipif(not extension.is_available(), reason="no compiled kernels")


def rows(shape: tuple[int, int], kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(shape[1])
    scores = torch.randn(shape, generator=generator) * 4.0
    if kind == "ties":
        scores = scores.round() * torch.tensor([1.0, -0.0]).repeat(shape[1])[: shape[1]]
    if kind == "holes":
        scores[:, ::3] = -inf
    return scores


def words(shape: tuple[int, int], missing: int) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    count = max(1, -(-shape[1] // 32) - missing)
    bits = torch.randint(-(2**31), 2**31, (shape[0], count), generator=generator)
    bits[0, 0] = -1
    return bits.to(torch.int32)


def cuts(
    num_rows: int, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.full((num_rows,), top_k),
        torch.full((num_rows,), top_p, dtype=torch.float64),
        torch.full((num_rows,), min_p, dtype=torch.float64),
    )


@both_backends
def test_statistics_are_the_definitions(backend: KernelBackend) -> None:
    probabilities = [1 / 2, 1 / 8, 1 / 4, 1 / 8]
    scores = torch.tensor([[3.0 + log(p) for p in probabilities], [-inf, 2.0, -inf, 2.0]])
    have = backend.row_stats(scores)
    assert have.top_ids.tolist() == [[0, 2], [1, 3]]
    assert torch.equal(have.top_scores, scores.gather(1, have.top_ids))
    assert have.logsumexp.tolist() == pytest.approx([3.0, 2.0 + log(2.0)], abs=1e-6)
    assert have.entropy.tolist() == pytest.approx([1.75 * log(2.0), log(2.0)], abs=1e-6)


@both_backends
def test_the_legal_mass_is_the_definition(backend: KernelBackend) -> None:
    probabilities = torch.tensor([[1 / 2, 1 / 8, 1 / 4, 1 / 8], [0.0, 1 / 2, 0.0, 1 / 2]])
    mask = torch.tensor([[0b0110], [0b0101], [-1], [0]], dtype=torch.int32)
    index = torch.tensor([0, 1, 0, 0])
    for heat in (0.5, 1.0, 2.0):
        temperatures = torch.full((4,), heat)
        scores = (probabilities.log() + 3.0) * heat
        have = backend.legal_mass(scores, mask, temperatures, rows=index)
        assert have.tolist() == pytest.approx([log(3 / 8), -inf, 0.0, -inf], abs=1e-6)
        assert have[2] == 0.0  # exactly: the sums are the same


@both_backends
def test_a_legal_mass_is_finite_however_small(backend: KernelBackend) -> None:
    """A text whose constraint the model likes little has a weight nevertheless."""
    scores = torch.zeros(1, 5000)
    scores[0, 4000] = 90.0
    mask = torch.zeros(1, 157, dtype=torch.int32)
    mask[0, 3] = 1
    have = backend.legal_mass(scores, mask, torch.tensor([0.5]))
    assert have.item() == pytest.approx(-180.0)


@both_backends
def test_a_row_without_a_score_has_finite_entropy(backend: KernelBackend) -> None:
    scores = torch.full((1, 40), -inf)
    have = backend.row_stats(scores)
    assert have.top_ids.tolist() == [[0, 1]]
    assert (have.logsumexp.item(), have.entropy.item()) == (-inf, 0.0)


@both_backends
@pytest.mark.parametrize("kind", ["plain", "holes"])
def test_entropy_is_left_out_on_request_and_nothing_else_changes(
    backend: KernelBackend, kind: str
) -> None:
    scores = rows((3, 5000), kind)
    scores[1] = -inf
    whole, part = (backend.row_stats(scores, entropy=asked) for asked in (True, False))
    assert part.entropy.isnan().all()
    assert not whole.entropy.isnan().any()
    for name in ("top_ids", "top_scores", "logsumexp"):
        assert torch.equal(getattr(part, name), getattr(whole, name))


@both_backends
def test_logprobs_are_the_definitions(backend: KernelBackend) -> None:
    scores = torch.tensor([[0.0, 1.0, 1.0, -2.0], [5.0, 5.0, 5.0, 5.0]])
    have = backend.row_logprobs(scores, torch.tensor([3, 1, 0]), 3, rows=torch.tensor([0, 1, 0]))
    total = log(1 + 2 * exp(1.0) + exp(-2.0))
    assert have.top_ids.tolist() == [[1, 2, 0], [0, 1, 2], [1, 2, 0]]
    assert have.chosen.tolist() == pytest.approx([-2.0 - total, -log(4.0), -total], abs=1e-6)
    assert have.top[0].tolist() == pytest.approx([1.0 - total, 1.0 - total, -total], abs=1e-6)
    assert backend.row_logprobs(scores, torch.tensor([0, 0]), 0).top_ids.shape == (2, 0)


@both_backends
def test_a_bitmask_forbids_what_it_has_no_bit_for(backend: KernelBackend) -> None:
    scores = torch.zeros(2, 70)
    mask = torch.tensor([[-1, -(2**31)], [0b101, -1]], dtype=torch.int32)
    backend.apply_bitmask(scores, mask)
    legal = [(row == 0.0).nonzero()[:, 0].tolist() for row in scores]
    assert legal == [[*range(32), 63], [0, 2, *range(32, 64)]]
    narrow = torch.zeros(1, 10)
    backend.apply_bitmask(narrow, torch.tensor([[0b11, 7]], dtype=torch.int32))
    assert (narrow == 0.0).sum() == 2


@both_backends
@pytest.mark.parametrize(
    ("cut", "want"),
    [
        ({}, {0, 1, 2, 3, 4, 6}),
        ({"top_k": 2}, {1, 3}),
        ({"top_k": 9}, {0, 1, 2, 3, 4, 6}),
        ({"top_p": 0.0}, {1}),
        ({"min_p": 0.5}, {1, 3, 4, 6}),
        ({"min_p": 1.0}, {1, 3, 4, 6}),
        ({"min_p": 0.1, "top_p": 0.99999}, {0, 1, 2, 3, 4, 6}),
        # sums of equals are exact, so the cuts among them are
        ({"min_p": 1.0, "top_p": 0.5}, {1, 3}),
        ({"min_p": 1.0, "top_p": 0.5000001}, {1, 3, 4}),
        # of the two that top_k leaves, one has half of the mass
        ({"top_k": 2, "top_p": 0.5}, {1}),
        ({"top_k": 5, "top_p": 0.999}, {0, 1, 3, 4, 6}),
    ],
)
def test_truncation_is_the_definition(
    cut: dict[str, float], want: set[int], backend: KernelBackend
) -> None:
    scores = torch.tensor([[4.0, 5.0, 4.0, 5.0, 5.0, -inf, 5.0]])
    have = scores.clone()
    backend.apply_top_k_top_p(have, *cuts(1, **cut))  # type: ignore[arg-type]
    kept = set((have[0] > -inf).nonzero()[:, 0].tolist())
    assert kept == want
    assert torch.equal(have[have > -inf], scores[have > -inf])


@both_backends
def test_truncation_takes_each_row_by_itself(backend: KernelBackend) -> None:
    scores = rows((4, 300), "plain")
    top_k, top_p = torch.tensor([0, 3, 0, 50]), torch.tensor([1.0, 1.0, 0.6, 0.9]).double()
    min_p = torch.tensor([0.0, 0.0, 0.0, 0.01]).double()
    together = scores.clone()
    backend.apply_top_k_top_p(together, top_k, top_p, min_p)
    assert torch.equal(together[0], scores[0])
    for i in range(4):
        alone = scores[i : i + 1].clone()
        backend.apply_top_k_top_p(alone, *(cut[i : i + 1] for cut in (top_k, top_p, min_p)))
        assert torch.equal(alone[0], together[i])


@compiled
@pytest.mark.parametrize("kind", ["plain", "ties", "holes"])
@pytest.mark.parametrize("shape", SHAPES)
def test_compiled_rows_agree_with_the_oracle(shape: tuple[int, int], kind: str) -> None:
    scores = rows(shape, kind)
    have, want = COMPILED.row_stats(scores), REFERENCE.row_stats(scores)
    assert torch.equal(have.top_ids, want.top_ids)
    assert torch.equal(have.top_scores, want.top_scores)
    torch.testing.assert_close(have.logsumexp, want.logsumexp, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(have.entropy, want.entropy, rtol=2e-6, atol=2e-6)
    for mask, heat in product((words(shape, 0), words(shape, 2)), (0.01, 0.7, 1.0)):
        mass, expected = (
            backend.legal_mass(scores, mask, torch.full((shape[0],), heat))
            for backend in (COMPILED, REFERENCE)
        )
        torch.testing.assert_close(mass, expected, rtol=2e-6, atol=2e-6)
        masked, oracle = scores.clone(), scores.clone()
        COMPILED.apply_bitmask(masked, mask)
        REFERENCE.apply_bitmask(oracle, mask)
        assert torch.equal(masked, oracle)
    token_ids = torch.arange(shape[0]) % shape[1]
    k = min(20, shape[1])
    found, oracles = (
        backend.row_logprobs(scores, token_ids, k) for backend in (COMPILED, REFERENCE)
    )
    assert torch.equal(found.top_ids, oracles.top_ids)
    torch.testing.assert_close(found.top, oracles.top, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.chosen, oracles.chosen, rtol=1e-6, atol=1e-6)


@compiled
@pytest.mark.parametrize("kind", ["plain", "ties", "holes", "flat", "steep"])
@pytest.mark.parametrize("shape", SHAPES)
def test_compiled_cuts_are_the_oracles(shape: tuple[int, int], kind: str) -> None:
    """Masses are whole numbers: not one token may differ."""
    scores = rows(shape, "plain" if kind in ("flat", "steep") else kind)
    scores *= {"flat": 0.01, "steep": 100.0}.get(kind, 1.0)
    for top_k, top_p, min_p in product((0, 1, 7, 1000), (0.0, 0.5, 0.95, 1.0), (0.0, 0.02, 1.0)):
        have, want = scores.clone(), scores.clone()
        cut = cuts(shape[0], top_k, top_p, min_p)
        COMPILED.apply_top_k_top_p(have, *cut)
        REFERENCE.apply_top_k_top_p(want, *cut)
        assert torch.equal(have, want), (top_k, top_p, min_p)


@both_backends
def test_a_row_of_nothing_stays_so(backend: KernelBackend) -> None:
    scores = torch.full((1, 9), -inf)
    backend.apply_top_k_top_p(scores, *cuts(1, 2, 0.5, 0.1))
    assert (scores == -inf).all()


@compiled
def test_rows_of_a_wider_tensor_are_changed_where_they_lie() -> None:
    wide = rows((3, 1000), "plain")
    want = wide.clone()
    REFERENCE.apply_top_k_top_p(want[:, :400], *cuts(3, 5))
    COMPILED.apply_top_k_top_p(wide[:, :400], *cuts(3, 5))
    assert torch.equal(wide, want)
