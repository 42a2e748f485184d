"""The sampling that a model's files recommend: read, used where a request is silent, put off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from plait.decoders.sampling.params import SamplingParams
from plait.server.api.requests.sampling import sampling_params
from plait.server.api.responses.objects import encode
from plait.server.api.routes.models import model_of
from plait.server.api.schemas.chat import ChatRequest
from plait.server.models.catalog import BadModel, ModelFiles
from plait.server.models.hf.generation import SamplingDefaults, sampling_from_config
from plait.server.models.inspect import open_model
from plait.server.prompt.tokenizer import Tokenizer
from plait.server.settings import EngineSettings, LimitSettings
from tests.fixtures.stub_pool import StubModel
from tests.fixtures.whole_models import write_whole_folder, write_whole_gguf

QWEN = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}


def folder(path: Path, **generation: Any) -> ModelFiles:
    files = write_whole_folder(path)
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, **generation}))
    return files


def tokenizer(files: ModelFiles, **settings: Any) -> Tokenizer:
    return open_model(files, EngineSettings(model=str(files.path), **settings))


def law(tokenizer: Tokenizer, **fields: Any) -> SamplingParams:
    messages = [{"role": "user", "content": "x"}]
    request = ChatRequest.model_validate({"model": "m", "messages": messages, **fields})
    return sampling_params(request, tokenizer, tokenizer.vocab_size, LimitSettings())


def test_a_silent_request_gets_what_the_makers_recommend(tmp_path: Path) -> None:
    have = law(tokenizer(folder(tmp_path, **QWEN, do_sample=True, top_h=0.5)))
    assert (have.temperature, have.top_p, have.top_k) == (0.7, 0.8, 20)
    assert (have.repetition_penalty, have.min_p) == (1.05, 0.0)
    assert (have.presence_penalty, have.frequency_penalty) == (0, 0)


def test_what_a_request_says_stands(tmp_path: Path) -> None:
    served = tokenizer(folder(tmp_path, **QWEN, min_p=0.05))
    fields = {"temperature": 1, "top_p": 1, "top_k": 0, "min_p": 0, "repetition_penalty": 1}
    have = law(served, **fields, seed=1)
    assert have == law(tokenizer(folder(tmp_path / "plain")), seed=1)
    assert law(served, temperature=0).temperature == 0
    assert law(served, top_k=-1).top_k == 0
    assert (law(served, top_p=0).temperature, law(served, top_p=0).top_p) == (0, 1)
    assert law(served, temperature=None).temperature == 0.7


def test_it_can_be_put_off(tmp_path: Path) -> None:
    files = folder(tmp_path, **QWEN)
    assert tokenizer(files, generation_config="off").sampling == SamplingDefaults()
    assert tokenizer(files, generation_config="off").eos_token_ids == {2}  # this is not sampling


def test_transformers_own_defaults_are_not_the_makers_word(tmp_path: Path) -> None:
    assert tokenizer(folder(tmp_path, do_sample=True)).sampling == SamplingDefaults()
    assert tokenizer(folder(tmp_path, top_k=None)).sampling == SamplingDefaults()


def test_gguf_files_recommend_in_their_metadata(tmp_path: Path) -> None:
    keys = {"temp": 0.6, "top_p": 0.95, "top_k": 20, "penalty_repeat": 1.1, "mirostat": 0}
    metadata: dict[str, Any] = {f"general__sampling__{name}": value for name, value in keys.items()}
    files = write_whole_gguf(tmp_path / "m.gguf", **metadata)
    want = SamplingDefaults(temperature=0.6, top_p=0.95, top_k=20, repetition_penalty=1.1)
    assert tokenizer(files).sampling == want
    assert tokenizer(files, generation_config="off").sampling == SamplingDefaults()


def test_the_log_says_so(tmp_path: Path) -> None:
    with capture_logs() as logs:
        tokenizer(folder(tmp_path, **QWEN))
    assert [line["event"] for line in logs] == ["sampling defaults of the model"]
    assert {name: logs[0][name] for name in QWEN} == QWEN
    with capture_logs() as logs:
        tokenizer(folder(tmp_path))
    assert logs == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 3.5),
        ("temperature", "hot"),
        ("temperature", -0.1),
        ("top_p", 0),
        ("top_p", 1.5),
        ("top_k", 2.5),
        ("top_k", -2),
        ("min_p", [0.1]),
        ("repetition_penalty", 0.0),
    ],
)
def test_what_no_request_could_ask_for_is_refused(tmp_path: Path, name: str, value: Any) -> None:
    files = folder(tmp_path, **{name: value})
    with pytest.raises(BadModel, match=f"generation_config.json: {name} .*--generation-config off"):
        tokenizer(files)
    assert tokenizer(files, generation_config="off").sampling == SamplingDefaults()


def test_the_list_of_models_shows_it(tmp_path: Path) -> None:
    served = StubModel("m", tokenizer=tokenizer(folder(tmp_path, **QWEN)))
    assert model_of(served).sampling == QWEN
    assert "sampling" not in json.loads(encode(model_of(StubModel("m"))))


def test_only_what_changes_something_is_shown() -> None:
    values = {"temperature": 1.0, "top_p": 1, "top_k": -1, "min_p": 0.1}
    assert sampling_from_config(values).stated() == {"min_p": 0.1}
