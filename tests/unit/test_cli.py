"""The command line: where options come from, and what wrong ones get."""

from __future__ import annotations

import shlex
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, fields, is_dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import ByteSize, TypeAdapter

from plait import server
from plait.decoders.constrained.spec import JsonStyle
from plait.server import cli
from plait.server import main as entry
from plait.server.options.serve import ServeOptions
from plait.server.parser import format_size
from plait.server.serve import bind, seconds_since_start
from plait.server.settings import ApiSettings, EngineSettings, Settings


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ServeOptions.model_fields:
        monkeypatch.delenv(f"PLAIT_{name.upper()}", raising=False)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """Settings that `plait serve` would have run with."""
    seen: list[Settings] = []

    def run(settings: Settings) -> int:
        seen.append(settings)
        return 0

    monkeypatch.setattr(cli, "run", run)
    return seen


def serve(served: list[Settings], *arguments: str) -> Settings:
    with pytest.raises(SystemExit) as ended:
        cli.main(["serve", *arguments])
    assert ended.value.code == 0
    return served[-1]


@pytest.fixture
def help_text(capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit):
        cli.main(["serve", "--help"])
    return capsys.readouterr().out


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err


def leaves(layer: Any, prefix: str = "") -> dict[str, Any]:
    """Return every field below a settings object, by the name of its option."""
    found: dict[str, Any] = {}
    for field in fields(layer):
        value = getattr(layer, field.name)
        if is_dataclass(value) and not isinstance(value, JsonStyle):
            found |= leaves(value, "compile_" if field.name == "compile" else "")
        elif field.name != "engines":
            found[prefix + field.name] = value
    return found


# Values of options that are not one more than the default.
STRANGE: dict[str, Any] = {
    "host": "::1",
    "worker": "vllm",
    "vllm_python": "/opt/vllm/bin/python",
    "vllm_arg": ("block-size=32", "enforce-eager"),
    "weights": "fp32",
    "generation_config": "off",
    "pool": "ray",
    "ray_address": "10.0.0.1:6379",
    "ray_host": "10.0.0.2",
    "ray_ports": "9510-9529",
    "max_replicas": 7,
    "ray_weights": "object-store",
    "ray_resources": {"slot": 1.0},
    "ray_labels": {"zone": "b"},
    "device": "cuda",
    "kernels": "avx2",
    "log_format": "json",
    "log_level": "error",
    "otlp_endpoint": "http://x",
    "served_name": "s",
    "token_trace": "t.jsonl",
    "draft_model": "d",
    "draft_weights": "fp32",
    "draft_store": "folder",
    "drafter": "prediction, n-gram",
    "default_deadline_s": 3.0,
    "compile_json_style": JsonStyle(objects="open", numbers="any"),
    "scorer_url": ("prm=http://127.0.0.1:9/score", "rm=https://example.org/"),
}


def test_without_options_the_settings_are_the_documented_ones(served: list[Settings]) -> None:
    assert serve(served) == Settings()


def test_every_setting_has_an_option_with_its_default_and_a_help() -> None:
    options = ServeOptions.model_fields
    wanted = leaves(Settings()) | leaves(EngineSettings())
    renamed = {"api_keys": "api_key", "model": "models", "compile_schemas": "schema_folder"}
    for name, default in wanted.items():
        option = options[renamed.get(name, name)]
        assert option.description, name
        lists = ("cors_origins", "scorer_url", "vllm_arg")
        if name not in (*renamed, *lists, "compile_json_style"):
            assert option.default == default, name
    assert len({*wanted}) == len(wanted)


def test_every_option_reaches_its_setting(served: list[Settings]) -> None:
    plain = leaves(Settings()) | leaves(EngineSettings())
    want: dict[str, Any] = {}
    arguments: list[str] = []
    for name, default in plain.items():
        flag = f"--{name.replace('_', '-')}"
        if name in ("api_keys", "cors_origins", "model", "compile_schemas"):
            continue
        if isinstance(default, bool):
            want[name] = not default
            arguments.append(flag if want[name] else f"--no-{name.replace('_', '-')}")
        else:
            want[name] = STRANGE[name] if name in STRANGE else default + 1
            given = want[name]
            if isinstance(given, JsonStyle):
                given = tuple(f"{k}={v}" for k, v in asdict(given).items() if v is not None)
            if isinstance(given, dict):
                given = tuple(f"{k}={v}" for k, v in given.items())
            arguments += [flag, ",".join(given) if isinstance(given, tuple) else str(given)]
    settings = serve(served, "m", *arguments, "--cors-origins", "a,b")
    have = leaves(settings) | leaves(settings.engines[0])
    assert {name: have[name] for name in want} == want
    assert settings.api.cors_origins == ("a", "b")
    assert settings.engines[0].model == "m"


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["--ray-cpus", "2"], "ray_cpus: only with --pool ray"),
        (["--pool", "local", "--ray-weights", "shared"], "ray_weights: only with --pool ray"),
        (["--scale-down-s", "5"], "scale_down_s: only with --max-replicas"),
        (["--replicas", "3", "--max-replicas", "2"], "max_replicas: 2 is below replicas"),
        (["--pool", "ray", "--ray-ports", "9520-9510"], "ray_ports: '9520-9510' is no range"),
        (["--pool", "ray", "--ray-resources", "slot=0"], "ray_resources: slot=0: write NAME="),
    ],
)
def test_options_of_the_pool_that_make_no_sense(
    arguments: list[str], fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["serve", *arguments])
    assert ended.value.code == cli.EXIT_USAGE
    assert fault in capsys.readouterr().err


def test_models_want_machines_of_their_own(served: list[Settings], tmp_path: Path) -> None:
    file = tmp_path / "plait.yaml"
    file.write_text("pool: ray\nray_gpus: 1\nengines:\n- {model: a, ray_labels: {zone: b}}\n")
    (engine,) = serve(served, "--config", str(file)).engines
    assert (engine.ray_gpus, engine.ray_labels) == (1.0, {"zone": "b"})
    file.write_text("engines:\n- {model: a, ray_labels: {zone: b}}\n")
    with pytest.raises(SystemExit):
        cli.main(["serve", "--config", str(file)])


def test_the_command_line_beats_the_environment_beats_the_file(
    served: list[Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "plait.yaml"
    file.write_text("port: 1\nmax_queue: 2\nreplicas: 3\nkv_cache_bytes: 1MiB\n")
    monkeypatch.setenv("PLAIT_MAX_QUEUE", "20")
    monkeypatch.setenv("PLAIT_REPLICAS", "30")
    settings = serve(served, "--config", str(file), "--replicas", "300")
    assert (settings.api.port, settings.pool.max_queue, settings.pool.replicas) == (1, 20, 300)
    assert settings.engines[0].kv_cache_bytes == 2**20
    monkeypatch.setenv("PLAIT_CONFIG", str(file))
    assert serve(served).api.port == 1


def test_models_and_what_they_want_different(served: list[Settings], tmp_path: Path) -> None:
    settings = serve(served, "one", "two", "--weights", "int8")
    assert [(e.model, e.weights) for e in settings.engines] == [("one", "int8"), ("two", "int8")]
    assert [e.model for e in serve(served, "--model", "one").engines] == ["one"]
    assert [e.model for e in serve(served, "one", "--model", "two").engines] == ["one", "two"]
    file = tmp_path / "plait.yaml"
    file.write_text("weights: bf16\nengines:\n- {model: a, weights: fp32}\n- {model: b}\n")
    settings = serve(served, "--config", str(file), "--max-num-seqs", "3")
    have = [(e.model, e.weights, e.max_num_seqs) for e in settings.engines]
    assert have == [("a", "fp32", 3), ("b", "bf16", 3)]


def test_api_keys_from_everywhere(
    served: list[Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys"
    file.write_text("one\ntwo\n")
    monkeypatch.setenv("PLAIT_API_KEY", "three")
    assert serve(served, "--api-key-file", str(file)).api.api_keys == ("three", "one", "two")
    settings = serve(served, "--api-key", "x", "--api-key", "y")
    assert settings.api.api_keys == ("x", "y")


@pytest.mark.parametrize(
    ("arguments", "want"),
    [
        (["serve", "--prot", "1"], "unrecognized arguments"),
        (["serve", "--port", "abc"], "plait: port: "),
        (["serve", "--port", "65536"], "plait: port: "),
        (["serve", "--max-queue", "0"], "plait: max_queue: "),
        (["serve", "--keep-alive-s", "nan"], "plait: keep_alive_s: "),
        (["serve", "--weights", "int2"], "plait: weights: "),
        (["serve", "--drafter", "telepathy"], "plait: drafter: "),
        (["serve", "--drafter", "n-gram,typical"], "typical is lossy"),
        (["serve", "--drafter", "n-gram,off"], "There is no drafter 'off'"),
        (["serve", "--scorer-url", "prm=file:///etc/passwd"], "is no NAME=URL"),
        (["serve", "--scorer-url", "a=http://x,a=http://y"], "a name stands twice"),
        (["serve", "a", "b", "--served-name", "c"], "plait: served_name: "),
        (["serve", "--config", "/nowhere.yaml"], "there is no configuration file"),
        (["serve", "--api-key-file", "/nowhere"], "No such file"),
        (["sevre"], "sevre"),
        ([], "subcommand is required"),
    ],
)
def test_wrong_usage_is_told_in_one_line_each(
    capsys: pytest.CaptureFixture[str], arguments: list[str], want: str
) -> None:
    have = complaint(capsys, *arguments)
    assert want in have
    assert "Traceback" not in have


def test_unknown_keys_of_the_file_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "plait.yaml"
    file.write_text("prot: 1\n")
    assert "'prot' is no option: did you mean port?" in complaint(
        capsys, "serve", "--config", str(file)
    )
    file.write_text("engines: [{model: a, wights: int8}]\n")
    assert "wights" in complaint(capsys, "serve", "--config", str(file))


def test_a_wrong_key_file_never_shows_a_key(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLAIT_API_KEY", "s3cret")
    assert "s3cret" not in complaint(capsys, "serve", "--port", "x")


@pytest.mark.parametrize("arguments", [["version"], ["--version"]])
def test_version(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with suppress(SystemExit):
        cli.main(arguments)
    assert capsys.readouterr().out == f"plait {metadata.version('plait')}\n"


def test_ctrl_c_while_it_is_imported_ends_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Interrupted(ModuleType):
        def main(self) -> None:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "plait.server.cli", Interrupted("cli"))
    monkeypatch.setattr(server, "cli", Interrupted("cli"))
    with pytest.raises(SystemExit) as ended:
        entry.main()
    assert ended.value.code == 130


def test_closed_streams_end_nothing() -> None:
    plait = shlex.quote(str(Path(sys.executable).with_name("plait")))
    done = subprocess.run(["sh", "-c", f"exec {plait} version <&- >&- 2>&-"], check=False)
    assert done.returncode == 0


def test_a_token_trace_that_cannot_be_written_is_told_at_the_start(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    have = complaint(capsys, "serve", "--token-trace", str(tmp_path / "no" / "trace"))
    assert (
        have == f"plait: token_trace: can't write {tmp_path}/no/trace: No such file or directory\n"
    )


def headings(text: str) -> dict[str, str]:
    """Return the options of a help text with the headings that they stand under."""
    found, heading = {}, ""
    for line in text.splitlines():
        if line and not line.startswith(" "):
            heading = line
        elif line.startswith("  -"):
            found[line.split()[0].strip(",")] = heading
    return found


def test_help_is_in_groups(help_text: str) -> None:
    found = headings(help_text)
    wanted = {"--port": "The HTTP server:", "--kv-cache-bytes": "The engine of each model:"}
    wanted |= {"--max-n": "What one request may ask for:", "--config": "options:"}
    assert {name: found.get(name) for name in wanted} == wanted
    assert len({*found.values()}) == 9
    hidden = {"--models", "--engines"}  # an argument; a list that only the file has
    options = {f"--{name.replace('_', '-')}" for name in ServeOptions.model_fields}
    assert options - {*found} == hidden


def test_help_writes_values_as_people_do(help_text: str) -> None:
    said = " ".join(help_text.split())
    sizes = [f for f in ServeOptions.model_fields.values() if isinstance(f.default, ByteSize)]
    assert len(sizes) > 4
    for field in sizes:
        assert f"{field.description} (default: {format_size(field.default)})" in said
        assert TypeAdapter(ByteSize).validate_python(format_size(field.default)) == field.default
    assert "ByteSize" not in said and "list[" not in said
    assert help_text.startswith("usage: plait serve [OPTIONS] [MODEL ...]\n")


@pytest.mark.parametrize(
    ("size", "want"),
    [(2**30, "1GiB"), (3 * 2**19, "1.5MiB"), (2**18, "256KiB"), (10, "10B"), (0, "0")],
)
def test_sizes_are_readable(size: int, want: str) -> None:
    assert format_size(ByteSize(size)) == want


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["serve", "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    names = leaves(Settings()).keys() - {"compile_schemas"}
    assert all(f"--{name.replace('_', '-')}" in text for name in names if name in text)
    assert "PLAIT_MAX_QUEUE" in text


def test_a_port_in_use_raises_and_a_free_one_is_found() -> None:
    with bind(ApiSettings(port=0)) as first:
        port = first.getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            bind(ApiSettings(port=port))


def test_the_age_of_this_process_is_plausible() -> None:
    assert 0 < seconds_since_start() < 24 * 3600


def test_a_model_of_the_configuration_names_the_kind_of_its_workers(
    served: list[Settings], tmp_path: Path
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("engines: [{model: a}, {model: b, worker: vllm}]\n")
    settings = serve(served, "--config", str(config))
    assert [engine.worker for engine in settings.engines] == ["native", "vllm"]
