"""What oracle tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from plait.kernels import extension
from tests.fixtures.backends import using_isa


@pytest.fixture(params=extension.isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Compute with each path that the processor can run; the one before again afterwards."""
    with using_isa(request.param):
        yield request.param
