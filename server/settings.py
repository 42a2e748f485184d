"""All settings of the server: frozen dataclasses that the command line builds once.

One class per layer, with the documented defaults. Sizes in bytes, times in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from plait.decoders.constrained.spec import PRETTY, JsonStyle

WeightMode = Literal["auto", "fp32", "bf16", "int8", "int4", "int4fixed"]
Kernels = Literal[
    "fastest",
    "reference",
    "amx",
    "avx512bf16",
    "avx512vnni16",
    "avx512vnni",
    "avx512",
    "avxvnni",
    "avx2",
    "generic",
]


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """What one request may ask for."""

    max_body_bytes: int = 8 * 2**20
    max_json_depth: int = 64
    max_json_values: int = 2**18  # in one body: a token prompt may be about that long
    max_json_names: int = 2**13  # in one object
    max_n: int = 128
    max_sequences_per_request: int = 256  # prompts x n
    max_stop_strings: int = 4
    max_stop_chars: int = 256
    max_logprobs: int = 20
    max_logit_bias: int = 1024
    max_bad_words: int = 128
    max_bad_word_tokens: int = 1024
    max_cache_salt_chars: int = 128
    max_prediction_tokens: int = 2**15
    max_import_tokens: int = 2**15  # into a draft store, at once
    max_tokenize_bytes: int = 2**20  # of /tokenize
    clamp_max_tokens: bool = False  # to what the prompt leaves of the context
    max_schema_bytes: int = 256 * 2**10
    max_schema_depth: int = 64


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """The HTTP server."""

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    protect_metrics: bool = False
    keep_alive_s: float = 75.0  # above the 60 s of most load balancers
    sse_comment_s: float = 15.0  # comment lines while nothing else is sent; 0: off
    read_timeout_s: float = 60.0  # a body slower than this is refused
    write_timeout_s: float = 60.0  # a reader slower than this is dropped
    drain_s: float = 30.0
    cors_origins: tuple[str, ...] = ()
    limits: LimitSettings = field(default_factory=LimitSettings)


@dataclass(frozen=True, slots=True)
class CompileSettings:
    """The grammar compile service."""

    deadline_s: float = 5.0  # CPU time of one compile
    timeout_s: float = 120.0  # wall clock of waiting and compiling: this machine's fault, a 503
    processes: int = 0  # at once; 0: one for each four cores, at least two
    memory_bytes: int = 2 * 2**30  # address space beyond what the idle process has
    cache_bytes: int = 64 * 2**20
    max_whitespace: int = 4  # between two JSON tokens
    json_style: JsonStyle = PRETTY  # where requests say nothing
    # Documents that schemas may refer to, by the URIs that references may use.
    schemas: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RaySettings:
    """The Ray cluster whose machines the workers run on."""

    ray_address: str = ""  # empty: the one that this machine is part of, or one that is started
    ray_host: str = ""  # this machine, seen from the others; empty: as Ray knows it
    ray_ports: str = ""  # LOW-HIGH, that workers connect to; empty: any free ones
    ray_weights: Literal["shared", "object-store"] = "shared"


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """The workers and their requests."""

    pool: Literal["local", "ray"] = "local"  # where workers run
    ray: RaySettings = field(default_factory=RaySettings)
    replicas: int = 1  # per model, at least
    max_replicas: int = 0  # at most, while requests queue; 0: as replicas
    scale_up_requests: int = 32  # per worker; above, one more is started
    scale_down_s: float = 120.0  # that fewer workers would have been enough, before one ends
    max_queue: int = 256  # requests waiting or running, per worker
    default_deadline_s: float | None = None
    ready_timeout_s: float = 600.0
    heartbeat_timeout_s: float = 30.0
    restart_backoff_s: float = 1.0
    restart_backoff_max_s: float = 60.0
    compile: CompileSettings = field(default_factory=CompileSettings)


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """One engine; sent to the worker."""

    model: str = "smollm2-135m-instruct"  # built-in name, GGUF file or Hugging Face folder
    served_name: str = ""  # empty: the built-in name, or the file's stem
    worker: str = "native"  # what runs the model: see server/workers
    vllm_python: str = ""  # interpreter that vLLM is installed for; empty: see pool/vllm.py
    vllm_arg: tuple[str, ...] = ()  # NAME=VALUE: vLLM's own engine arguments
    # Devices of a vLLM worker: of each layer's parts, and of the layers one after the other.
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    # What a worker takes of a machine of a Ray cluster.
    ray_cpus: float = 1.0
    ray_gpus: float = 0.0
    ray_memory_bytes: int = 0
    ray_resources: Mapping[str, float] = field(default_factory=dict)
    ray_labels: Mapping[str, str] = field(default_factory=dict)
    device: str = "cpu"
    weights: WeightMode = "auto"
    threads: int = 0  # 0: as many as the machine has cores
    max_model_len: int = 0  # 0: the model's own
    generation_config: Literal["auto", "off"] = "auto"  # sampling that the model's files recommend
    max_num_seqs: int = 64
    max_step_tokens: int = 512  # rows of one forward pass
    kv_cache_bytes: int = 0  # 0: what all sequences need, 1 GiB or what one needs, what fits
    prefix_caching: bool = True
    prefix_cache_bytes: int = 0  # taken before old ones are evicted; 0: see build.kept_blocks
    drafter: str = "auto"  # of requests that name none: auto, off, or ids with commas between
    draft_model: str = ""  # as model, or self[:LAYERS]; empty: none
    draft_weights: WeightMode = "auto"
    draft_kv_cache_bytes: int = 2**28
    draft_store: str = ""  # folder of the drafters' stores (of one worker: a file); empty: none
    draft_store_tokens: int = 2**15  # of earlier texts, kept in a namespace
    draft_store_namespaces: int = 16
    grammar_cache_bytes: int = 2**28  # grammars kept ready
    kernels: Kernels = "fastest"  # of each operation; reference: those that are not compiled
    scorer_url: tuple[str, ...] = ()  # NAME=URL, of services that requests may name
    scorer_timeout_s: float = 30.0
    token_trace: str = ""  # file for the token ids of every text; empty: none

    @property
    def num_ranks(self) -> int:
        """Devices that a vLLM worker divides its model among."""
        return self.tensor_parallel_size * self.pipeline_parallel_size


@dataclass(frozen=True, slots=True)
class TelemetrySettings:
    """Logs, metrics, traces."""

    log_level: str = "info"
    log_format: Literal["json", "console"] = "console"
    access_log: bool = True
    log_prompts: bool = False
    otlp_endpoint: str = ""


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings."""

    api: ApiSettings = field(default_factory=ApiSettings)
    pool: PoolSettings = field(default_factory=PoolSettings)
    engines: tuple[EngineSettings, ...] = (EngineSettings(),)
    telemetry: TelemetrySettings = field(default_factory=TelemetrySettings)
