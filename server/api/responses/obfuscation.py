"""Padding of stream chunks, so that their sizes on the wire tell little about the text in them."""

from __future__ import annotations

import secrets

STEP = 32  # characters; most chunks come to the same size


def padding_for(text: str) -> str:
    """Return 1 to STEP random characters that bring the text's bytes up to a multiple of STEP."""
    missing = STEP - len(text.encode("utf-8")) % STEP
    return secrets.token_hex(-(-missing // 2))[:missing]
