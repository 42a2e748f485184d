"""What oracle tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from plait.kernels import dispatch


@pytest.fixture(params=dispatch.isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Compute with each instruction set that the processor has; the best one again afterwards."""
    best = dispatch.isa()
    dispatch.use_isa(request.param)
    yield request.param
    dispatch.use_isa(best)
