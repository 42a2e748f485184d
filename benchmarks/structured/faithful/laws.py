"""The law of a task's texts given that they are legal: by enumeration of all their tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, log

import numpy as np
import torch

from benchmarks.decoders.statistics import Interval
from benchmarks.structured.faithful.setup import Lab, Task, decoding_of
from plait.decoders.contract.constraint import Constraint
from plait.decoders.sampling.params import SamplingParams

NEGLIGIBLE = 1e-5  # probability of a beginning that is not followed
RESAMPLES = 1000
Text = str
Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Laws:
    """Two laws over the texts of a task, exact up to rounding."""

    conditional: Mapping[Text, float]  # the model's, given that the text is legal
    masked: Mapping[Text, float]
    legal: float  # the probability that a text is legal


@dataclass(frozen=True, slots=True)
class _Prefix:
    tokens: Tokens
    constraint: Constraint
    log_prob: float
    log_masked: float


def enumerate_laws(lab: Lab, task: Task) -> Laws:
    """Return the laws of a task; one forward pass for each beginning of a legal text."""
    prompt = lab.tokenizer.encode(task.prompt)
    open_, conditional, masked = [_root(lab, task)], dict[Text, float](), dict[Text, float]()
    while open_:
        rows = _rows(lab, task, prompt, open_)
        children = [
            c for prefix, row in zip(open_, rows, strict=True) for c in _extend(prefix, row)
        ]
        open_ = []
        for child in children:
            if child.tokens[-1] in lab.stops or child.constraint.is_terminated():
                text = text_of(lab, child.tokens)
                conditional[text] = conditional.get(text, 0.0) + exp(child.log_prob)
                masked[text] = masked.get(text, 0.0) + exp(child.log_masked)
            elif max(child.log_prob, child.log_masked) > log(NEGLIGIBLE):
                open_.append(child)
    legal = sum(conditional.values())
    scaled = {text: mass / legal for text, mass in conditional.items()}
    return Laws(scaled, masked, legal)


def _root(lab: Lab, task: Task) -> _Prefix:
    return _Prefix((), lab.constraints[task.name].fork(), 0.0, 0.0)


def _extend(prefix: _Prefix, row: Mapping[int, float]) -> list[_Prefix]:
    """Return a beginning with each legal token behind it."""
    mass, found = log(sum(exp(value) for value in row.values())), []
    for token, value in row.items():
        constraint = prefix.constraint.fork()
        assert constraint.accept_token(token)
        logs = prefix.log_prob + value, prefix.log_masked + value - mass
        found.append(_Prefix((*prefix.tokens, token), constraint, *logs))
    return found


def _rows(
    lab: Lab, task: Task, prompt: Sequence[int], prefixes: Sequence[_Prefix]
) -> list[dict[int, float]]:
    """Return the log-probabilities of the legal tokens behind each beginning."""
    names, wanted = list[str](), list[list[int]]()
    for prefix in prefixes:
        mask = torch.full((1, -(-lab.vocab_size // 32)), -1, dtype=torch.int32)
        prefix.constraint.fill_bitmask(mask, 0)
        bits = np.unpackbits(mask.numpy().view(np.uint8), bitorder="little")[: lab.vocab_size]
        legal: list[int] = bits.nonzero()[0].tolist()
        sampling = SamplingParams(logprobs=0, logprob_token_ids=tuple(legal))
        more = {"prompt": [*prompt, *prefix.tokens], "sampling": sampling}
        names.append(
            lab.ask(task, 0, 1, decoding_of(None), key="free", max_tokens=1, stops=[], **more)
        )
        wanted.append(legal)
    found = lab.run()
    rows = []
    for name, legal in zip(names, wanted, strict=True):
        entries = found[name, 0][1].logprobs
        assert entries is not None
        (entry,) = entries
        values = dict([(entry.token_id, entry.logprob), *entry.top])
        rows.append({token: values[token] for token in legal})
    return rows


def text_of(lab: Lab, tokens: Sequence[int]) -> Text:
    """Return what tokens spell."""
    pieces = (lab.tokenizer.token_bytes[token] for token in tokens if token not in lab.stops)
    return b"".join(pieces).decode()


def divergence(samples: Sequence[Text], law: Mapping[Text, float]) -> float:
    """Return the Kullback-Leibler divergence of the samples' frequencies from a law, in nats."""
    counts = Counter(samples)
    return sum(
        count / len(samples) * log(count / len(samples) / law[text])
        for text, count in counts.items()
    )


def with_error(samples: Sequence[Text], law: Mapping[Text, float], seed: int = 0) -> Interval:
    """Return the divergence with the 95 % interval of a bootstrap of the samples."""
    rng, value = np.random.default_rng(seed), divergence(samples, law)
    found = [
        divergence([samples[i] for i in rng.integers(len(samples), size=len(samples))], law)
        for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(found, [0.025, 0.975]).tolist()
    return Interval(value, low, high)


def of_exact_samples(count: int, law: Mapping[Text, float], seed: int = 0) -> Interval:
    """Return what as many exact samples would show: the mean, and the 95 % interval."""
    rng, texts = np.random.default_rng(seed), list(law)
    shares = np.array([law[text] for text in texts])
    found = []
    for counts in rng.multinomial(count, shares / shares.sum(), size=RESAMPLES):
        drawn = [text for text, number in zip(texts, counts, strict=True) for _ in range(number)]
        found.append(divergence(drawn, law))
    low, high = np.quantile(found, [0.025, 0.975]).tolist()
    return Interval(float(np.mean(found)), low, high)
