"""Logprobs in the two shapes of OpenAI's API.

A token need not be whole characters. The chat shape always carries its bytes and writes such a
token as their escapes; the completions shape has no bytes, so its escapes are marked "bytes:".
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import msgspec

from plait.decoders.contract.decoder import TokenLogprobs
from plait.server.prompt.detokenizer import Detokenizer
from plait.server.prompt.tokenizer import Tokenizer

# What stands for log 0, which JSON cannot write; OpenAI's choice.
LOWEST = -9999.0


def chat_logprobs(tokenizer: Tokenizer, logprobs: Sequence[TokenLogprobs]) -> dict[str, Any]:
    """Return a chat choice's `logprobs` object."""
    content = [
        {
            **_chat_token(tokenizer, entry.token_id, entry.logprob),
            "top_logprobs": [_chat_token(tokenizer, i, value) for i, value in entry.top],
        }
        for entry in logprobs
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(
    tokenizer: Tokenizer,
    token_ids: Sequence[int],
    logprobs: Sequence[TokenLogprobs | None],
    offsets: Sequence[int],
) -> dict[str, Any]:
    """Return a completion choice's `logprobs` object.

    Args:
        tokenizer: Spells the tokens.
        token_ids: [n] the tokens shown.
        logprobs: [n] theirs; None where there is none, as for the first token of a prompt.
        offsets: [n] where each begins, in characters of the choice's text.
    """
    return {
        "tokens": [completion_token(tokenizer, i) for i in token_ids],
        "token_logprobs": [None if entry is None else finite(entry.logprob) for entry in logprobs],
        "top_logprobs": [None if entry is None else _top(tokenizer, entry) for entry in logprobs],
        "text_offset": list(offsets),
    }


def with_alternatives(
    entries: Sequence[TokenLogprobs | None], count: int
) -> list[TokenLogprobs | None]:
    """Return the entries with `count` alternatives at most."""
    return [each and msgspec.structs.replace(each, top=each.top[:count]) for each in entries]


def ranked(tokenizer: Tokenizer, entry: TokenLogprobs) -> dict[int, tuple[float, int | None, str]]:
    """Return (logprob, rank, text) of a prompt's token and of its alternatives.

    The rank of a token that is not among the alternatives is None.
    """
    found: dict[int, tuple[float, int | None, str]] = {}
    ranks = {token_id: rank for rank, (token_id, _) in enumerate(entry.top, 1)}
    for token_id, logprob in ((entry.token_id, entry.logprob), *entry.top):
        text = chat_token(tokenizer, token_id)
        found[token_id] = finite(logprob), ranks.get(token_id), text
    return found


def text_offsets(tokenizer: Tokenizer, token_ids: Sequence[int]) -> list[int]:
    """Return where each token begins in tokenizer.decode(token_ids, special=True), in characters.

    A token that begins within a character begins where the character does.
    """
    detokenizer = Detokenizer([tokenizer.token_name(token_id) for token_id in token_ids])
    pieces = [detokenizer.push(i) for i in range(len(token_ids))]
    begins = accumulate(map(len, pieces), initial=0)
    first = next(filter(None, pieces), "")
    dropped = 1 if tokenizer.strips_space and first.startswith(" ") else 0
    return [max(0, begin - dropped) for begin, _ in zip(begins, pieces, strict=False)]


def chat_token(tokenizer: Tokenizer, token_id: int) -> str:
    r"""Return a token as the chat shape writes it: its text, or escapes like \xe2\x82."""
    return _text_or_escapes(tokenizer.token_name(token_id), "")


def completion_token(tokenizer: Tokenizer, token_id: int) -> str:
    r"""Return a token as the completions shape writes it: its text, or bytes:\xe2\x82."""
    return _text_or_escapes(tokenizer.token_name(token_id), "bytes:")


def finite(logprob: float) -> float:
    """Return the value that JSON carries for a logprob."""
    return max(logprob, LOWEST)


def _text_or_escapes(data: bytes, mark: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return mark + "".join(f"\\x{byte:02x}" for byte in data)


def _chat_token(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    return {
        "token": chat_token(tokenizer, token_id),
        "logprob": finite(logprob),
        "bytes": list(tokenizer.token_name(token_id)),
    }


def _top(tokenizer: Tokenizer, entry: TokenLogprobs) -> dict[str, float]:
    """Return the alternatives and the token itself; of equal spellings the likelier one."""
    top: dict[str, float] = {}
    for token_id, logprob in (*entry.top, (entry.token_id, entry.logprob)):
        top.setdefault(completion_token(tokenizer, token_id), finite(logprob))
    return top
