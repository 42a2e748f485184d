"""The scorers that are built in. A module that defines one costs nothing to import."""

from __future__ import annotations

from plait.decoders.scorers import form, http, keywords, length

METHODS = (keywords.METHOD, length.METHOD, form.METHOD, http.METHOD)
