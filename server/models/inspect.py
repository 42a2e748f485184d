"""Check a model before a worker starts: whether it can be served, and how.

No torch, and no tensor is read: a model that can't be served is refused in well under a second.
"""

from __future__ import annotations

import re
from importlib.metadata import version

import structlog
from jinja2 import TemplateError
from pydantic import ByteSize

from plait.server.memory import system_memory
from plait.server.models.catalog import MALFORMED, BadModel, ModelFiles, naming, resolve
from plait.server.models.checkpoint import Checkpoint, check_complete, check_shapes
from plait.server.models.gguf import GgufCheckpoint
from plait.server.models.hf.folder import HfCheckpoint
from plait.server.models.spec import ModelSpec
from plait.server.prompt.chat_template import compile_template
from plait.server.prompt.tokenizer import Tokenizer, load_tokenizer
from plait.server.settings import EngineSettings
from plait.server.workers.vllm.settings import DEFAULT, check_settings

log = structlog.stdlib.get_logger(__name__)

_OWN_LAYERS = re.compile(r"self(:.*)?")  # as a draft model: no files of its own


def open_model(files: ModelFiles, engine: EngineSettings) -> Tokenizer:
    """Return the tokenizer of a model that a worker can serve as the settings have it.

    Raises:
        BadModel: a file, or what is asked of the model; the message says what to change.
    Cost: 0.5 s for a vocabulary of 49,152 tokens.
    """
    check_engine(files, engine)
    tokenizer = open_tokenizer(files, sampling=engine.generation_config == "auto")
    if stated := tokenizer.sampling.stated():
        log.info("sampling defaults of the model", model=files.name, **stated)
    return tokenizer


def check_engine(files: ModelFiles, engine: EngineSettings) -> None:
    """Refuse what no worker could serve; see open_model."""
    if engine.worker == "vllm":
        check_settings(files, engine)
        return
    for option in ("vllm_python", "vllm_arg", "tensor_parallel_size", "pipeline_parallel_size"):
        if getattr(engine, option) != getattr(DEFAULT, option):
            raise BadModel(f"{option} is an option of vLLM workers: give --worker vllm, too")
    check_device(engine.device)
    _check_memory(engine)
    spec = inspect(files)
    if engine.max_model_len > spec.max_positions:
        raise BadModel(
            f"max_model_len {engine.max_model_len} is more than the {spec.max_positions} positions "
            f"that {files.name} was made for; leave the option out for all of them"
        )
    if engine.draft_model and not _OWN_LAYERS.fullmatch(engine.draft_model):
        inspect(resolve(engine.draft_model))


def check_device(device: str) -> None:
    """Refuse a GPU if the installed torch can't drive one; a worker asks for the rest."""
    if device.startswith("cuda") and (torch := version("torch")).endswith("+cpu"):
        raise BadModel(
            f"device {device}: the installed torch {torch} is built for CPUs alone; install a "
            "build for CUDA, or give --device cpu"
        )


def _check_memory(engine: EngineSettings) -> None:
    """Refuse a cache that is larger than all of this machine's memory; on a GPU a worker looks."""
    memory = system_memory() if engine.device == "cpu" else None
    caches = {"kv_cache_bytes": engine.kv_cache_bytes}
    if engine.draft_model:
        caches["draft_kv_cache_bytes"] = engine.draft_kv_cache_bytes
    for name, size in caches.items():
        if memory is not None and size > memory.total:
            raise BadModel(
                f"{name} {ByteSize(size).human_readable()} is more than the memory there is, "
                f"{ByteSize(memory.total).human_readable()}"
            )


def inspect(files: ModelFiles) -> ModelSpec:
    """Return the description of a model whose files are all there and fit together.

    Raises:
        BadModel: naming the file.
    """
    with naming(files.path):
        checkpoint: Checkpoint = (
            GgufCheckpoint(files.path) if files.kind == "gguf" else HfCheckpoint(files.path, "np")
        )
        check_complete(checkpoint)
        check_shapes(checkpoint)
        return checkpoint.spec


def open_tokenizer(files: ModelFiles, *, sampling: bool = False) -> Tokenizer:
    """Return a model's tokenizer, whose chat template has been found to parse.

    Raises:
        BadModel: a file is damaged or of a kind that is not known, or the template does not parse.
    """
    tokenizer = load_tokenizer(files, sampling=sampling)
    if tokenizer.chat_template is not None:
        try:
            compile_template(tokenizer.chat_template)
        except TemplateError as error:
            line = getattr(error, "lineno", None)
            told = f"line {line}: {error.message}" if line else f"{error}"
            raise _bad_template(files, told) from error
        except (*MALFORMED, SyntaxError) as error:
            raise _bad_template(files, str(error) or type(error).__name__) from error
    return tokenizer


def _bad_template(files: ModelFiles, told: str) -> BadModel:
    names = ("chat_template.jinja", "tokenizer_config.json")
    where = next((files.path / name for name in names if (files.path / name).is_file()), files.path)
    return BadModel(
        f"{where}: the chat template does not parse: {told}. Mend it, or take it out: "
        "/v1/completions needs none"
    )
