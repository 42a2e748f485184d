"""Padding of stream chunks, so that their sizes reveal little about the text in them."""

from __future__ import annotations

import secrets

STEP = 32  # bytes; most chunks have the same size


def padding_for(text: str) -> str:
    """Return 1 to STEP random characters that pad the text's bytes to a multiple of STEP."""
    missing = STEP - len(text.encode("utf-8")) % STEP
    return secrets.token_hex(-(-missing // 2))[:missing]
