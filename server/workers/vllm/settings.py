"""What a vLLM worker can't honour of the server's settings, found before it starts."""

from __future__ import annotations

from dataclasses import fields

from plait.server.models.catalog import BadModel, ModelFiles
from plait.server.settings import EngineSettings
from plait.server.workers.vllm.interpreter import find_python

DEFAULT = EngineSettings()
# Options of the native engine, and who has the like of them instead.
NATIVE = {
    "device": "it runs where its vLLM is built for",
    "draft_model": "it drafts without a second model",
    "draft_weights": "it drafts without a second model",
    "draft_kv_cache_bytes": "it drafts without a second model",
    "kernels": "it computes with vLLM's own",
    "prefix_cache_bytes": "vLLM keeps prefixes as long as nobody else needs their blocks",
}
WEIGHTS = ("auto", "bf16", "fp32")


def check_settings(files: ModelFiles, engine: EngineSettings) -> None:
    """Raise BadModel for a model or an option that a vLLM worker can't serve."""
    find_python(engine.vllm_python)
    if files.kind == "gguf":
        raise BadModel(f"{files.path}: a vLLM worker serves Hugging Face folders, not GGUF files")
    if engine.weights not in WEIGHTS:
        raise BadModel(
            f"weights {engine.weights}: a vLLM worker takes them as they are in the folder, or "
            "in bf16 or fp32"
        )
    if 0 < engine.ray_gpus < engine.num_ranks:
        raise BadModel(f"ray_gpus {engine.ray_gpus:g}: {engine.num_ranks} ranks need a GPU each")
    if engine.pipeline_parallel_size > 1 and engine.drafter != "off":
        raise BadModel("pipeline_parallel_size: vLLM can't draft then; give --drafter off, too")
    for field in fields(EngineSettings):
        why = NATIVE.get(field.name)
        if why is not None and getattr(engine, field.name) != getattr(DEFAULT, field.name):
            raise BadModel(f"a vLLM worker has no option {field.name}: {why}")
