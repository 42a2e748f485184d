"""The unmasking methods that are built in: one file each, listed here. No torch."""

from __future__ import annotations

from plait.decoders.registry import Method

METHODS: tuple[Method, ...] = ()
