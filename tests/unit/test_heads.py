"""Which heads a model gets, those trained for its very files, and the inputs that they feed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from plait.decoders.contract.registry import Choice, MethodError, check_needs, choose
from plait.decoders.sampling.params import SamplingParams
from plait.kernels.paged_attention import TREE
from plait.server.engine.build import build_engine
from plait.server.models.catalog import BadModel, ModelFiles, resolve
from plait.server.models.heads import SHIPPED, add_inputs, belongs_to, find_heads
from plait.server.models.load import load_model
from plait.server.models.transformer import Transformer
from plait.server.settings import EngineSettings
from tests.fixtures.drafting import drafted_by
from tests.fixtures.engines import request, run
from tests.fixtures.tiny_heads import tiny_head, write_head
from tests.fixtures.tiny_models import VOCAB, write_tiny_model
from tests.parity.feeding import Piece, feed

HIDDEN, PROMPTS = 64, 3
ACCURACY = torch.tensor([[0.5, 0.2], [0.4, 0.1], [0.3, 0.1]])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    return resolve(str(write_tiny_model(tmp_path_factory.mktemp("model"))))


def write_ppd(path: Path, weights: str, width: int = HIDDEN) -> Path:
    embeddings = torch.randn(PROMPTS, width, generator=torch.Generator().manual_seed(1))
    tensors = {"accuracy": ACCURACY, "accuracy_sampled": ACCURACY.clone()}
    save_file({"embeddings": embeddings, **tensors}, path, {"weights": weights})
    return path


def test_a_head_serves_the_files_it_was_trained_for(files: ModelFiles, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "other").mkdir()
    write_ppd(tmp_path / "other" / "ppd.safetensors", "0123456789abcdef")
    assert find_heads(files, tmp_path) == {}
    mine = write_ppd(tmp_path / "mine" / "ppd.safetensors", belongs_to(files))
    assert find_heads(files, tmp_path) == {"ppd": mine}
    assert find_heads(files, tmp_path / "nowhere") == {}


def test_a_damaged_head_is_named(files: ModelFiles, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "eagle.safetensors").write_bytes(b"no tensors")
    with pytest.raises(BadModel, match=r"eagle\.safetensors is damaged"):
        find_heads(files, tmp_path)


def test_inputs_must_be_as_wide_as_the_model(files: ModelFiles, tmp_path: Path) -> None:
    path = write_ppd(tmp_path / "ppd.safetensors", "", width=32)
    with pytest.raises(BadModel, match=r"inputs are \(3, 32\), not \[n, 64\]"):
        add_inputs(load_model(files, weights="fp32"), {"ppd": path})
    save_file({"embedding": torch.ones(PROMPTS, HIDDEN)}, path)
    with pytest.raises(BadModel, match=r"ppd\.safetensors: .*embeddings"):
        add_inputs(load_model(files, weights="fp32"), {"ppd": path})
    save_file({"embeddings": torch.full((PROMPTS, HIDDEN), torch.nan)}, path)
    with pytest.raises(BadModel, match=r"ppd\.safetensors: .*NaN"):
        add_inputs(load_model(files, weights="fp32"), {"ppd": path})


def test_ordinary_rows_keep_their_bits_beside_inputs(files: ModelFiles, tmp_path: Path) -> None:
    """Prompts change nothing but rows behind them, and their logits are those of the vocabulary."""
    plain, extended = (load_model(files, weights="fp32") for _ in range(2))
    assert add_inputs(extended, {"ppd": write_ppd(tmp_path / "ppd.safetensors", "")}) == PROMPTS
    text = [5, 17, 200, 3, VOCAB - 1]
    tree = [9, VOCAB, VOCAB + 1, 30, VOCAB + 2]
    parents = [-1, -1, 1, 0, 3]
    want = _rows(plain, text, [9, 0, 0, 30, 0], parents)
    have = _rows(extended, text, tree, parents)
    ordinary = [0, 1, 2, 3, 4, 5, 8]
    assert have.shape == want.shape == (10, VOCAB)
    assert torch.equal(have[ordinary], want[ordinary])
    assert not torch.allclose(have[6], want[6])


def test_an_input_that_is_an_embedding_acts_as_its_token(files: ModelFiles) -> None:
    model = load_model(files, weights="fp32")
    text = [5, 17, 200, 3]
    want = _rows(model, text, [41, 7], [-1, 0])
    model.extend(model.embedding[torch.tensor([41, 7])])
    assert torch.equal(_rows(model, text, [VOCAB, VOCAB + 1], [-1, 0]), want)


def _rows(model: Transformer, text: list[int], tree: list[int], parents: list[int]) -> Tensor:
    blocks = range(1)
    kv = model.new_kv_cache(1)
    first = feed(model, kv, Piece(text, blocks))
    piece = Piece(tree, blocks, context_len=len(text), attend=TREE, parents=parents)
    return torch.cat([first, feed(model, kv, piece)])


@pytest.mark.parametrize("name", ["ppd", "eagle", "chimera"])
def test_a_request_for_a_head_that_is_missing_is_refused(name: str) -> None:
    choice = choose({"drafter": name}, "drafter")
    assert isinstance(choice, Choice)
    with pytest.raises(MethodError, match=f"{name} needs weights trained for this model"):
        check_needs(choice, ["tree"])


@pytest.mark.parametrize("name", ["ppd", "eagle", "chimera"])
def test_an_engine_drafts_with_the_head_beside_its_model(name: str, tmp_path: Path) -> None:
    """The text is the one without, and the worker says what it has."""
    folder = write_tiny_model(tmp_path, hidden_size=HIDDEN)
    files = resolve(str(folder))
    if name == "ppd":
        write_ppd(folder / "ppd.safetensors", belongs_to(files))
    else:
        head = tiny_head(name, VOCAB, window=8, hidden=HIDDEN)
        write_head(head, folder, weights=belongs_to(files))
    settings = EngineSettings(model=str(folder), weights="fp32", threads=1, kv_cache_bytes=2**22)
    engine, info = build_engine(settings)
    assert name in info.capabilities
    requests = [
        request(f"{i}", [1, 5 + i, 9], 24, sampling=SamplingParams(temperature=i % 2, seed=i))
        for i in range(4)
    ]
    want = {key: one.tokens for key, one in run(engine, drafted_by(requests, "off")).items()}
    drafter: dict[str, Any] = {"name": name, "always": True}
    have = {key: one.tokens for key, one in run(engine, drafted_by(requests, drafter)).items()}
    assert have == want
    assert engine.stats().counters.speculation.draft_tokens[name] > 0


def test_shipped_heads_are_whole() -> None:
    """Each says which files it belongs to, and holds numbers."""
    for path in SHIPPED.glob("*/*.safetensors"):
        tensors = load_file(path)
        assert all(torch.isfinite(tensor.float()).all() for tensor in tensors.values())
