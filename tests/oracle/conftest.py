"""What oracle tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from plait.kernels import extension


@pytest.fixture(params=extension.isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Compute with each instruction set that the processor has; the best one again afterwards."""
    best = extension.isa()
    extension.use_isa(request.param)
    yield request.param
    extension.use_isa(best)
