"""The noise: the published generator, the Gumbel law, independence, the same bits everywhere."""

from __future__ import annotations

from math import exp, inf, log, nan, sqrt

import pytest
import torch
from torch import Tensor

from plait.kernels import extension, noise
from plait.kernels.noise import elementary
from plait.kernels.noise import reference as oracle
from tests.fixtures.backends import COMPILED, REFERENCE, KernelBackend, both_backends

BASE = (12345, 0, 40)
compiled = pytest.mark.skipif(not extension.is_available(), reason="no compiled kernels")


def keys(*rows: tuple[int, int, int]) -> Tensor:
    return torch.tensor([noise.key(*row) for row in rows], dtype=torch.int64)


@pytest.mark.parametrize(
    ("counter", "key", "want"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_is_the_published_one(
    counter: tuple[int, ...], key: tuple[int, int], want: tuple[int, ...]
) -> None:
    """The known-answer vectors that Random123 ships for philox4x32 with 10 rounds."""
    words = tuple(torch.tensor(word, dtype=torch.int64) for word in counter)
    key_words = (torch.tensor(key[0], dtype=torch.int64), torch.tensor(key[1], dtype=torch.int64))
    assert tuple(int(word) for word in oracle.philox(words, key_words)) == want


def test_exp_and_log_are_accurate() -> None:
    x = -torch.logspace(-6, 1.9, 20001)
    have = elementary.exp(x).double()
    assert ((have / x.double().exp()) - 1.0).abs().max() < 1.3e-7
    assert elementary.exp(torch.tensor([-inf, -88.0, 0.0])).tolist() == [0.0, 0.0, 1.0]

    x = torch.logspace(-30, 3, 20001)
    x = x[(x - 1.0).abs() > 1e-3]
    assert (elementary.log(x).double() / x.double().log() - 1.0).abs().max() < 1.3e-7
    v = torch.logspace(-9.9, -1e-4, 20001)
    assert (elementary.log1m(v).double() / torch.log1p(-v.double()) - 1.0).abs().max() < 1.3e-7


@compiled
@pytest.mark.parametrize("num_tokens", [1, 15, 64, 100, 1023, 1024, 9001])
def test_compiled_noise_has_the_oracles_bits(num_tokens: int) -> None:
    rows = keys(BASE, (2**64 - 1, 3, 0), (2**63, 2**32 - 1, 2**31))
    have = COMPILED.gumbel(rows, num_tokens)
    assert torch.equal(have, REFERENCE.gumbel(rows, num_tokens))


@both_backends
def test_noise_follows_the_gumbel_law(backend: KernelBackend) -> None:
    """Bins of equal mass hold equal counts (4 standard errors); the extremes stay in range."""
    have = backend.gumbel(keys(*((5, 1, i) for i in range(64))), 4096)
    uniform = (-(-have.double()).exp()).exp()
    bins, draws = 64, have.numel()
    counts = torch.histc(uniform, bins, 0.0, 1.0)
    error = sqrt(draws * (1 / bins) * (1 - 1 / bins))
    assert (counts - draws / bins).abs().max() < 4.0 * error
    assert have.min() > -2.9
    # the tail that wins argmaxes: P(noise > t) = 1 - exp(-exp(-t))
    for t in (4.0, 6.0, 8.0):
        mass = 1.0 - exp(-exp(-t))
        error = sqrt(draws * mass * (1.0 - mass))
        assert abs(int((have > t).sum()) - draws * mass) < 4.0 * error


def test_the_range_holds_for_the_extreme_words() -> None:
    words = torch.tensor([0, 2**32 - 1], dtype=torch.int64)
    uniform = (words.to(torch.float32) + 0.5) * oracle.WORD_UNIT
    have = -elementary.log(-elementary.log1m(uniform))
    assert have[0].item() == pytest.approx(log(2.0) * 33, abs=1e-4)
    assert -2.9 < have[1].item() < -2.7


@both_backends
@pytest.mark.parametrize(
    "other",
    [
        (BASE[0] + 1, *BASE[1:]),
        (BASE[0] + 2**32, *BASE[1:]),
        (BASE[0], 1, BASE[2]),
        (*BASE[:2], BASE[2] + 1),
    ],
    ids=["seed low", "seed high", "sequence", "position"],
)
def test_neighbouring_keys_are_uncorrelated(
    other: tuple[int, int, int], backend: KernelBackend
) -> None:
    a, b = backend.gumbel(keys(BASE, other), 40000).double()
    correlation = torch.corrcoef(torch.stack([a, b]))[0, 1].item()
    assert abs(correlation) < 4.0 / sqrt(len(a))
    assert int((a == b).sum()) < 4


@both_backends
@pytest.mark.parametrize("lag", [1, 16, 64])
def test_neighbouring_tokens_are_uncorrelated(lag: int, backend: KernelBackend) -> None:
    (row,) = backend.gumbel(keys(BASE), 40000).double()
    correlation = torch.corrcoef(torch.stack([row[:-lag], row[lag:]]))[0, 1].item()
    assert abs(correlation) < 4.0 / sqrt(len(row) - lag)


@both_backends
def test_noise_ignores_batch_and_vocabulary(backend: KernelBackend) -> None:
    rows = [(i % 3, i % 2, i) for i in range(9)]
    together = backend.gumbel(keys(*rows), 5000)
    for i, row in enumerate(rows):
        assert torch.equal(backend.gumbel(keys(row), 777)[0], together[i, :777])


@both_backends
@pytest.mark.parametrize("vocab", [1, 70, 1024, 20000])
def test_fused_draw_is_the_argmax_of_the_sum(vocab: int, backend: KernelBackend) -> None:
    generator = torch.Generator().manual_seed(vocab)
    scores = torch.randn(5, vocab, generator=generator) * 4.0
    scores[1] = scores[1].round()
    scores[2, vocab // 7 :] = -inf
    heat = torch.tensor([0.0, 0.0, 0.7, 1.0, 1.9])
    rows = keys(*((2, 0, i) for i in range(5)))
    perturbed = scores / heat.clamp(min=1e-9)[:, None] + backend.gumbel(rows, vocab)
    perturbed[:2] = scores[:2]
    have = backend.gumbel_argmax(scores, rows, temperatures=heat)
    for row, token in zip(perturbed, have.tolist(), strict=True):
        assert token == int((row == row.max()).nonzero()[0])


@both_backends
@pytest.mark.parametrize("vocab", [3, 70, 5000])
def test_a_bitmask_is_minus_infinity_where_it_has_no_bit(
    vocab: int, backend: KernelBackend
) -> None:
    generator = torch.Generator().manual_seed(vocab)
    scores = torch.randn(6, vocab, generator=generator) * 4.0
    heat = torch.tensor([0.0, 0.3, 0.7, 1.0, 0.0, 1.9])
    rows = keys(*((2, 1, i) for i in range(6)))
    for missing in (0, 1):
        count = max(-(-vocab // 32) - missing, 1)
        legal = torch.randint(-(2**31), 2**31, (6, count), generator=generator).to(torch.int32)
        legal[1], legal[2] = -1, 0
        legal[2, -1] = 2
        legal[3] = 0
        masked = scores.clone()
        backend.apply_bitmask(masked, legal)
        want = backend.gumbel_argmax(masked, rows, temperatures=heat)
        have = backend.gumbel_argmax(scores, rows, temperatures=heat, bitmask=legal)
        assert have.tolist() == want.tolist()
        assert have[2:4].tolist() == [32 * (count - 1) + 1, 0]


@compiled
@pytest.mark.parametrize("spread", [0.0, 0.01, 1.0, 30.0])
def test_what_is_passed_over_could_not_have_won(spread: float) -> None:
    """Groups without noise: flat rows, in which every token may win, steep ones, and equals."""
    generator = torch.Generator().manual_seed(5)
    scores = torch.randn(64, 3000, generator=generator) * spread
    scores[::2] = scores[::2].round()
    scores[:, 70::7] = -inf
    assert_draws_agree(scores, (0.0, 1e-4, 0.2, 1.0, 5.0))


@compiled
def test_equals_that_rounding_makes_are_not_passed_over() -> None:
    """At 2,500,000 noise counts in quarters; the group that is looked at first is the last one."""
    scores = torch.full((512, 128), 250.0)
    scores[:, 127] = torch.nextafter(torch.tensor(250.0), torch.tensor(inf))
    assert_draws_agree(scores, (1e-4,))


def assert_draws_agree(scores: Tensor, temperatures: tuple[float, ...]) -> None:
    rows = keys(*((9, 0, i) for i in range(len(scores))))
    for temperature in temperatures:
        heat = torch.full((len(scores),), temperature)
        have, want = (
            backend.gumbel_argmax(scores, rows, temperatures=heat)
            for backend in (COMPILED, REFERENCE)
        )
        assert have.tolist() == want.tolist()


@both_backends
def test_illegal_scores_never_win(backend: KernelBackend) -> None:
    scores = torch.tensor(
        [[-inf, nan, -1e30, nan], [-inf, -inf, nan, nan], [nan, -5.0, -5.0, -inf]]
    )
    rows = keys(*((0, 0, i) for i in range(3)))
    for heat in (0.0, 1.0):
        temperatures = torch.full((3,), heat)
        have = backend.gumbel_argmax(scores, rows, temperatures=temperatures).tolist()
        assert have[:2] == [2, 0]
        assert have[2] in ({1} if heat == 0.0 else {1, 2})


@both_backends
def test_draws_read_the_rows_named(backend: KernelBackend) -> None:
    scores = torch.randn(6, 500, generator=torch.Generator().manual_seed(1))
    index = torch.tensor([5, 0, 5])
    rows = keys((1, 0, 0), (1, 0, 1), (1, 1, 0))
    have = backend.gumbel_argmax(scores, rows, rows=index)
    assert torch.equal(have, backend.gumbel_argmax(scores[index], rows))
    # a view of wider rows is read where it lies
    wide = torch.cat([scores, scores], dim=1)[:, :500]
    assert torch.equal(have, backend.gumbel_argmax(wide, rows, rows=index))


@compiled
def test_bad_arguments_are_refused() -> None:
    scores, rows = torch.zeros(2, 8), keys((0, 0, 0), (0, 0, 1))
    with pytest.raises(RuntimeError, match="no such row"):
        COMPILED.gumbel_argmax(scores, rows, rows=torch.tensor([0, 2]))
    with pytest.raises(RuntimeError, match="float32"):
        COMPILED.gumbel_argmax(scores.double(), rows)
    with pytest.raises(RuntimeError, match=r"2 rows of scores for 1 results"):
        COMPILED.gumbel_argmax(scores, rows[:1])


@both_backends
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_draws_of_plain_numbers_are_those_of_tensors(backend: KernelBackend, rows: int) -> None:
    scores = 5.0 * torch.randn(rows, 700)
    plain = [noise.key(2**64 - 1 - row, row, 7 * row) for row in range(rows)]
    temperatures = [0.3 * row for row in range(rows)]
    want = REFERENCE.gumbel_argmax(
        scores,
        torch.tensor(plain, dtype=torch.int64).view(-1, 3),
        temperatures=torch.tensor(temperatures, dtype=torch.float32),
    )
    assert backend.draw_rows(scores, plain, temperatures) == want.tolist()
