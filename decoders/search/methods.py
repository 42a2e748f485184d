"""The searches that are built in. A module that defines one costs nothing to import."""

from __future__ import annotations

from plait.decoders.search import independent

METHODS = (independent.METHOD,)
