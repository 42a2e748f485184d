"""The options of `plait serve`, with their ranges and their help.

Each option is a field of settings.py with the same name (those of the compile service begin with
`compile_`) and the same default. cli.py fills this model and turns it into Settings once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ByteSize, ConfigDict, Field
from pydantic_settings import (
    BaseSettings,
    CliPositionalArg,
    CliSuppress,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from plait.decoders.constrained.spec import JsonStyle
from plait.decoders.speculative.config import default_drafters
from plait.server.config_sources import (
    ENV_PREFIX,
    Bytes,
    BytesOrZero,
    Count,
    Device,
    Port,
    Seconds,
    SecondsOrOff,
    Services,
    Style,
    Texts,
    load_schemas,
    open_yaml,
    refuse_unknown_variables,
    settings_from,
    split_commas,
)
from plait.server.options.pool import PlacementOptions, PoolOptions, check_pool
from plait.server.settings import (
    ApiSettings,
    CompileSettings,
    EngineSettings,
    Kernels,
    LimitSettings,
    PoolSettings,
    RaySettings,
    Settings,
    TelemetrySettings,
    WeightMode,
)

_API, _LIMITS, _COMPILE = ApiSettings(), LimitSettings(), CompileSettings()
_ENGINE, _TELEMETRY = EngineSettings(), TelemetrySettings()


def _known_drafters(value: str) -> str:
    default_drafters(value)  # its error lists the known drafters
    return value


class ApiOptions(BaseModel):
    """The HTTP server."""

    host: str = Field(_API.host, description="Address to listen on.")
    port: Port = Field(_API.port, ge=0, le=65535, description="Port to listen on; 0: any free one.")
    api_key: Texts = Field(
        [],
        description="Key that clients must send; several: repeat it or separate them by commas. "
        "Other users of the machine can read it here: prefer PLAIT_API_KEY or --api-key-file.",
    )
    api_key_file: Path | None = Field(None, description="File with one key a line.")
    protect_metrics: bool = Field(_API.protect_metrics, description="/metrics wants a key, too.")
    keep_alive_s: Seconds = Field(_API.keep_alive_s, description="An idle connection stays open.")
    sse_comment_s: SecondsOrOff = Field(
        _API.sse_comment_s, description="Pause after which a silent stream sends a comment; 0: off."
    )
    read_timeout_s: Seconds = Field(
        _API.read_timeout_s, description="A client that sends its request slower is dropped."
    )
    write_timeout_s: Seconds = Field(
        _API.write_timeout_s, description="A client that reads nothing for so long is dropped."
    )
    drain_s: SecondsOrOff = Field(
        _API.drain_s, description="After SIGTERM, running requests get this long to end."
    )
    cors_origins: Texts = Field([], description="Origins that browsers may call from.")


class LimitOptions(BaseModel):
    """What one request may ask for."""

    max_body_bytes: Bytes = Field(ByteSize(_LIMITS.max_body_bytes), description="A body.")
    max_json_depth: Count = Field(_LIMITS.max_json_depth, description="Nesting of a body.")
    max_json_values: Count = Field(_LIMITS.max_json_values, description="Values in a body.")
    max_json_names: Count = Field(_LIMITS.max_json_names, description="Names in one object.")
    max_n: Count = Field(_LIMITS.max_n, description="Answers to one prompt.")
    max_sequences_per_request: Count = Field(
        _LIMITS.max_sequences_per_request, description="Prompts times n."
    )
    max_stop_strings: Count = Field(_LIMITS.max_stop_strings, description="Stop strings.")
    max_stop_chars: Count = Field(_LIMITS.max_stop_chars, description="Length of a stop string.")
    max_logprobs: int = Field(_LIMITS.max_logprobs, ge=0, description="Alternatives per token.")
    max_logit_bias: Count = Field(_LIMITS.max_logit_bias, description="Entries of logit_bias.")
    max_bad_words: Count = Field(_LIMITS.max_bad_words, description="Entries of bad_words.")
    max_bad_word_tokens: Count = Field(
        _LIMITS.max_bad_word_tokens, description="Tokens of all bad words together."
    )
    max_cache_salt_chars: Count = Field(
        _LIMITS.max_cache_salt_chars, description="Length of a cache_salt."
    )
    max_prediction_tokens: Count = Field(
        _LIMITS.max_prediction_tokens, description="Tokens of a prediction."
    )
    max_tokenize_bytes: ByteSize = Field(
        ByteSize(_LIMITS.max_tokenize_bytes), ge=1, description="A text for /tokenize."
    )
    clamp_max_tokens: bool = Field(
        _LIMITS.clamp_max_tokens,
        description="Cut max_tokens to what the prompt leaves of the context, as vLLM does, "
        "instead of refusing it.",
    )
    max_import_tokens: Count = Field(
        _LIMITS.max_import_tokens, description="Tokens imported into a draft store at once."
    )
    max_schema_bytes: Bytes = Field(
        ByteSize(_LIMITS.max_schema_bytes), description="A schema, regex or grammar."
    )
    max_schema_depth: Count = Field(_LIMITS.max_schema_depth, description="Nesting of a schema.")


class CompileOptions(BaseModel):
    """The grammar compile service."""

    compile_deadline_s: Seconds = Field(
        _COMPILE.deadline_s,
        description="CPU time of one compile; a schema, regex or grammar that needs more is "
        "refused.",
    )
    compile_timeout_s: Seconds = Field(
        _COMPILE.timeout_s,
        description="Wall clock of waiting and compiling; then the answer is a 503, and the same "
        "request may be sent again.",
    )
    compile_processes: int = Field(
        _COMPILE.processes,
        ge=0,
        le=1024,
        description="Compiles at once, at least 2; 0: one for each four cores.",
    )
    compile_memory_bytes: Bytes = Field(
        ByteSize(_COMPILE.memory_bytes),
        description="Memory of one compile; what needs more is refused.",
    )
    compile_cache_bytes: BytesOrZero = Field(
        ByteSize(_COMPILE.cache_bytes), description="Compiled grammars kept in the front end."
    )
    compile_max_whitespace: int = Field(
        _COMPILE.max_whitespace,
        ge=0,
        description="Blanks between JSON tokens, but for indentation.",
    )
    compile_json_style: Style = Field(
        {}, description="Options of JSON where requests say nothing: objects=open,key_order=any."
    )
    schema_folder: Path | None = Field(
        None,
        description="Folder of JSON schemas (*.json) that those of requests may refer to, by "
        "their path in it or their $id; nothing is ever fetched.",
    )


class EngineOptions(PlacementOptions):
    """The engine of each model."""

    worker: Literal["native", "vllm"] = Field(
        "native", description="What runs the model: plait's own engine, or vLLM (docs/workers.md)."
    )
    vllm_python: str = Field(
        _ENGINE.vllm_python,
        description="The Python that vLLM is installed for; empty: this one, or .venv-vllm's.",
    )
    vllm_arg: Texts = Field(
        [], description="NAME=VALUE: an argument of vLLM's engine (block-size=32), or a flag."
    )
    tensor_parallel_size: Count = Field(
        _ENGINE.tensor_parallel_size,
        description="Devices that a vLLM worker divides each layer among.",
    )
    pipeline_parallel_size: Count = Field(
        _ENGINE.pipeline_parallel_size,
        description="Groups of devices that a vLLM worker divides the layers among.",
    )
    device: Device = Field(_ENGINE.device, description="cpu, cuda, cuda:1, ...")
    weights: WeightMode = Field(_ENGINE.weights, description="How the weights are held.")
    threads: int = Field(_ENGINE.threads, ge=0, le=1024, description="Per worker; 0: one a core.")
    max_model_len: int = Field(
        _ENGINE.max_model_len,
        ge=0,
        le=2**31 - 1,
        description="Tokens of prompt and answer; 0: the model's own.",
    )
    generation_config: Literal["auto", "off"] = Field(
        _ENGINE.generation_config,
        description="auto: sampling that a request leaves open is as the model's files recommend; "
        "off: OpenAI's defaults.",
    )
    max_num_seqs: Count = Field(_ENGINE.max_num_seqs, description="Sequences running at once.")
    max_step_tokens: Count = Field(_ENGINE.max_step_tokens, description="Rows of a forward pass.")
    kv_cache_bytes: BytesOrZero = Field(
        ByteSize(_ENGINE.kv_cache_bytes),
        description="Memory that the KV cache may take (512MiB, 2GiB), as it is used; 0: 1GiB, or "
        "what one request of full length needs, and at most half of what is free.",
    )
    prefix_caching: bool = Field(
        _ENGINE.prefix_caching, description="Reuse the KV cache of a prompt's known beginning."
    )
    prefix_cache_bytes: BytesOrZero = Field(
        ByteSize(_ENGINE.prefix_cache_bytes),
        description="Of that, taken before old prompts are forgotten; 0: see docs/memory.md.",
    )
    drafter: Annotated[str, AfterValidator(_known_drafters)] = Field(
        _ENGINE.drafter,
        description="How requests draft that don't say so: auto, off, or ids with commas between.",
    )
    draft_model: str = Field(
        _ENGINE.draft_model,
        description="The draft model: named as a model; or self, the served model in other "
        "weights; or self:0-9,20-29, some of its layers.",
    )
    draft_weights: WeightMode = Field(
        _ENGINE.draft_weights, description="How the draft model's weights are held."
    )
    draft_kv_cache_bytes: Bytes = Field(
        ByteSize(_ENGINE.draft_kv_cache_bytes), description="Memory of its KV cache."
    )
    draft_store: str = Field(
        _ENGINE.draft_store,
        description="Folder where what drafters go by outlives the server; empty: nowhere. It "
        "holds what was answered, as token ids.",
    )
    draft_store_tokens: int = Field(
        _ENGINE.draft_store_tokens,
        ge=0,
        le=2**24,
        description="Tokens of earlier answers that drafters go by, per API key and cache_salt "
        "(about 1 KiB of memory each); 0: none.",
    )
    draft_store_namespaces: Count = Field(
        _ENGINE.draft_store_namespaces,
        description="API keys and salts of which so much is kept; those unused for longest go.",
    )
    grammar_cache_bytes: ByteSize = Field(
        ByteSize(_ENGINE.grammar_cache_bytes),
        description="Memory of grammars that a worker keeps ready; those unused for longest go.",
    )
    kernels: Kernels = Field(_ENGINE.kernels, description="An instruction set, or the fastest.")
    scorer_url: Services = Field(
        [], description="NAME=URL: a service that requests may let searches score texts with."
    )
    scorer_timeout_s: Seconds = Field(
        _ENGINE.scorer_timeout_s, description="A call of such a service that takes longer fails."
    )
    token_trace: str = Field(
        _ENGINE.token_trace,
        description="File that the token ids of every prompt and answer are appended to, for "
        "`python -m benchmarks.drafters`; empty: none.",
    )


class ModelEntry(EngineOptions):
    """One model of the configuration's list `engines`, with what it wants different."""

    model_config = ConfigDict(extra="forbid")

    model: str
    served_name: str = ""


class TelemetryOptions(BaseModel):
    """Logs, metrics, traces."""

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least important lines that are written."
    )
    log_format: Literal["json", "console"] = Field(
        _TELEMETRY.log_format, description="For machines or for people."
    )
    access_log: bool = Field(_TELEMETRY.access_log, description="A line per request.")
    log_prompts: bool = Field(_TELEMETRY.log_prompts, description="Prompts appear in the log.")
    otlp_endpoint: str = Field(
        _TELEMETRY.otlp_endpoint, description="Where traces go (OTLP over HTTP); empty: off."
    )


class ServeOptions(  # one column of help, in this order from the last base to the first
    TelemetryOptions, LimitOptions, CompileOptions, PoolOptions, EngineOptions, ApiOptions,
    BaseSettings,
):  # fmt: skip
    """Serve models over an OpenAI-compatible HTTP API.

    Every option can also be set in the environment (--max-queue: PLAIT_MAX_QUEUE) and in a YAML
    file (max_queue). The command line wins over the environment, that over the file.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, extra="forbid", protected_namespaces=()
    )

    models: Annotated[CliPositionalArg[list[str]], NoDecode, BeforeValidator(split_commas)] = Field(
        [],
        description="A built-in name, a GGUF file or a Hugging Face folder; "
        f"none: {_ENGINE.model}.",
    )
    model: str = Field("", description="The same as the argument: a model to serve.")
    served_name: str = Field("", description="Name of the one model, instead of its own.")
    config: Path | None = Field(None, description="YAML file with options.")
    engines: CliSuppress[list[ModelEntry]] = Field(
        [], description="In the YAML file only: models with engine options of their own."
    )

    @classmethod
    def settings_customise_sources(  # the signature is the library's
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read the command line (which arrives as init), the environment, the file it names."""
        refuse_unknown_variables(os.environ, cls.model_fields)
        named = init_settings().get("config") or env_settings().get("config")
        if named is None:
            return init_settings, env_settings
        return init_settings, env_settings, open_yaml(cls, Path(named))

    def settings(self) -> Settings:
        """Return the settings these options stand for.

        Raises:
            ValueError: they contradict each other; OSError: the key file can't be read.
        """
        of_models = (entry.model_fields_set for entry in self.engines)
        check_pool(self, self.model_fields_set.union(*of_models))
        values = {name: getattr(self, name) for name in type(self).model_fields}
        compile_values = {name.removeprefix("compile_"): value for name, value in values.items()}
        compile_values["json_style"] = JsonStyle(**self.compile_json_style)  # type: ignore[arg-type]
        compile_values["schemas"] = load_schemas(self.schema_folder)
        compiling = settings_from(CompileSettings, compile_values)
        limits = settings_from(LimitSettings, values)
        keys = {"api_keys": self._keys(), "cors_origins": tuple(self.cors_origins)}
        return Settings(
            api=settings_from(ApiSettings, {**values, **keys, "limits": limits}),
            pool=settings_from(
                PoolSettings,
                {**values, "compile": compiling, "ray": settings_from(RaySettings, values)},
            ),
            engines=self._engines(values),
            telemetry=settings_from(TelemetrySettings, values),
        )

    def _keys(self) -> tuple[str, ...]:
        lines = self.api_key_file.read_text().split() if self.api_key_file else []
        if self.api_key_file and not lines:
            raise ValueError(f"api_key_file: {self.api_key_file} holds no key")
        return (*self.api_key, *lines)

    def _engines(self, values: Mapping[str, Any]) -> tuple[EngineSettings, ...]:
        common = {name: values[name] for name in EngineOptions.model_fields}
        named = [*self.models, *filter(None, [self.model])]
        plain = named or ([] if self.engines else [_ENGINE.model])
        entries = [{"model": model} for model in plain]
        entries += [entry.model_dump(exclude_unset=True) for entry in self.engines]
        if self.served_name:
            if len(entries) > 1:
                raise ValueError("served_name: there are several models; name them in a YAML file")
            entries[0]["served_name"] = self.served_name
        return tuple(settings_from(EngineSettings, {**common, **entry}) for entry in entries)
