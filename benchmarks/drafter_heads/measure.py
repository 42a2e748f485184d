"""How often a head's guesses are right, by how far ahead they are and by their rank.

The text goes on as it is, so a guess d places ahead is judged by what the model says behind the
true tokens before it: by its best token, or by the token that noise of the place would draw at
temperature 1. Both head and model see the same noise.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from benchmarks.drafter_heads.data import Text
from benchmarks.drafter_heads.features import Answer
from benchmarks.drafter_heads.frozen import FrozenRows, Reader
from benchmarks.drafter_heads.head import Head
from benchmarks.drafter_heads.train_ppd import LONGEST, PROMPTS, anchors_of, is_long
from benchmarks.drafter_heads.training import fast_products
from plait.kernels.dispatch import cpu_backend

RANKS = 10
SEED = 77  # of the noise


def ppd_accuracy(
    reader: Reader, rows: FrozenRows, embeddings: Tensor, texts: Sequence[Text]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return A [PROMPTS, RANKS], greedy and sampled."""
    hits = torch.zeros(2, PROMPTS, RANKS)
    tried = 0
    for number, text in enumerate(texts):
        if not is_long(text):
            continue
        tokens = text.tokens[:LONGEST].tolist()
        with torch.no_grad():
            reading = reader.read(tokens)
            anchors = anchors_of(text, len(tokens), [SEED, number])
            inputs = embeddings.expand(len(anchors), -1, -1)
            guesses = rows.logits(rows.forward(inputs, reading, anchors))
            places = anchors[:, None] + 1 + torch.arange(PROMPTS)
            said = reader.model.logits(reading.hidden[places.flatten()]).view(guesses.shape)
        drawn = noise_of(places, number, guesses.shape[-1])
        for kind, noise in enumerate((torch.zeros(()), drawn)):
            want = (said + noise).argmax(-1, keepdim=True)
            hits[kind] += ((guesses + noise).topk(RANKS).indices == want).sum(0)
        tried += len(anchors)
    greedy, sampled = (hits / max(tried, 1)).double().numpy()
    return greedy, sampled


def head_accuracy(
    head: Head, full: Tensor, answers: Sequence[Answer], rounds: int, *, sampled: bool = False
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how often a round's best guess is right, [rounds], greedy and sampled.

    Args:
        full: [vocab, hidden] the model's lm_head, since a token may be none of the head's.
        sampled: whether to draw at temperature 1 as well, which takes longer; or that is 0.
    """
    hits, tried = torch.zeros(2, rounds), torch.zeros(rounds)
    for number, answer in enumerate(answers):
        hidden = torch.from_numpy(answer.hidden).float()
        with torch.no_grad(), fast_products():
            start = torch.tensor([answer.start])
            tokens = torch.from_numpy(answer.tokens)[None]
            states = head.rounds(tokens, hidden[None, :-1], start, rounds)
            found = [head.logits(each[0]).float() for each in states]
            said = F.linear(hidden[1:], full).float()
        kinds = [torch.zeros(1, len(full))]
        if sampled:
            places = answer.start + torch.arange(1, len(hidden))
            kinds.append(noise_of(places, number, len(full)))
        for kind, noise in enumerate(kinds):
            want = (said + noise).argmax(-1)
            for i, logits in enumerate(found):
                best = head.draft_ids[(logits + noise[:, head.draft_ids]).argmax(-1)]
                hits[kind, i] += (best[i:] == want[i:]).sum()
                tried[i] += (len(best) - i) * (kind == 0)
    greedy, drawn = (hits / tried).double().numpy()
    return greedy, drawn


def noise_of(places: Tensor, text: int, vocab: int) -> Tensor:
    """Return the noise of some places of a text, [*places, vocab]."""
    keys = [(SEED + text, 0, place) for place in places.flatten().tolist()]
    return cpu_backend().gumbel(torch.tensor(keys), vocab).view(*places.shape, vocab)
