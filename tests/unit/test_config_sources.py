"""Configuration files and variables that say something else than their author thinks: refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from plait.decoders.constrained.spec import JsonStyle
from plait.server import cli
from plait.server.config_sources import load_schemas, read_yaml, refuse_unknown_variables
from plait.server.options.serve import ServeOptions


@pytest.fixture(autouse=True)
def _nothing_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "run", lambda settings: pytest.fail(f"would have served {settings}"))


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the one line that the command writes before it exits with code 2."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["serve", *arguments])
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1), err
    assert err.startswith("plait: ")
    return err


BAD_FILES = {
    "twice": (b"host: a\nport: 1\nhost: b\n", "line 3, column 1: the key 'host' is given twice"),
    "twice, quoted": (b"port: 1\n'port': 2\n", "the key 'port' is given twice"),
    "twice, in a flow": (b"{port: 1, port: 2}", "the key 'port' is given twice"),
    "twice, nested": (
        b"engines:\n- model: a\n  weights: int8\n  model: b\n",
        "line 4, column 3: the key 'model' is given twice",
    ),
    "list": (b"- port: 1\n- host: x\n", "holds a list, not options"),
    "scalar": (b"port\n", "holds a single value, not options"),
    "open bracket": (b"engines: [{model: a}\n", "is not YAML: line 2, column 1:"),
    "tab": (b"api_key:\n\t- a\n", "is not YAML: line 2, column 1:"),
    "unknown anchor": (b"port: *here\n", "is not YAML: line 1, column 7: found undefined alias"),
    "python object": (b"port: !!python/name:os.system ''\n", "is not YAML: line 1, column 7:"),
    "no date": (b"port: 2026-13-01\n", "is not YAML: month must be in 1..12"),
    "two documents": (b"port: 1\n---\nport: 2\n", "is not YAML: line 2, column 1:"),
    "number as a key": (b"8000: port\n", "8000 is no option"),
    "unknown key": (b"prot: 5\n", "'prot' is no option: did you mean port?"),
    "spelt as on the command line": (
        b"max-queue: 5\n",
        "'max-queue' is no option: did you mean max_queue?",
    ),
    "like no option": (b"zzz: 5\n", "'zzz' is no option: `plait serve --help` lists the options"),
    "list as a key": (b"? [a]\n: 1\n", "is not YAML: line 1, column 3: found unhashable key"),
    "no text": (b"port: \xff\n", "is not UTF-8 text"),
    "control character": (b"port: 1\x00\n", "is not YAML: special characters are not allowed"),
    "deep": (b"a: " + b"[" * 4000, "is nested too deeply"),
}


@pytest.mark.parametrize(("content", "want"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_file_that_cannot_be_meant_is_refused_by_name(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes, want: str
) -> None:
    file = tmp_path / "plait.yaml"
    file.write_bytes(content)
    have = complaint(capsys, "--config", str(file))
    assert str(file) in have
    assert want in have


def test_what_yaml_allows_is_still_read(tmp_path: Path) -> None:
    file = tmp_path / "plait.yaml"
    file.write_text("base: &base {port: 1}\nother: {<<: *base, host: x}\nb: {port: 2}\n")
    assert read_yaml(file)["other"] == {"port": 1, "host": "x"}
    file.write_text("# nothing\n")
    assert read_yaml(file) == {}


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("PLAIT_MAX_QUEU", "did you mean PLAIT_MAX_QUEUE?"),
        ("PLAIT_APIKEY", "did you mean PLAIT_API_KEY?"),
        ("plait_prot", "did you mean PLAIT_PORT?"),
        ("PLAIT_ZZZZZZZZ", "`plait serve --help` lists the options"),
    ],
)
def test_a_variable_that_is_no_option_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, want: str
) -> None:
    monkeypatch.setenv(name, "s3cret")
    have = complaint(capsys)
    assert name in have
    assert want in have
    assert "s3cret" not in have


def test_service_links_of_kubernetes_and_options_pass() -> None:
    links = {
        "PLAIT_SERVICE_HOST": "10.0.0.1",
        "PLAIT_SERVICE_PORT": "80",
        "PLAIT_SERVICE_PORT_HTTP": "80",
        "PLAIT_PORT_80_TCP": "tcp://10.0.0.1:80",
        "PLAIT_PORT_80_TCP_PROTO": "tcp",
        "PLAIT_PORT_80_TCP_PORT": "80",
        "PLAIT_PORT_80_TCP_ADDR": "10.0.0.1",
        "PLAIT_CANARY_SERVICE_HOST": "10.0.0.2",
        "PLAIT_CANARY_SERVICE_PORT_METRICS": "9090",
        "PLAIT_CANARY_PORT": "tcp://10.0.0.2:80",
        "PLAIT_CANARY_PORT_9_UDP_ADDR": "10.0.0.2",
    }
    options = {f"PLAIT_{name.upper()}": "1" for name in ServeOptions.model_fields}
    refuse_unknown_variables({**links, **options, "HOME": "/"}, ServeOptions.model_fields)


@pytest.mark.parametrize("name", ["PLAIT_CANARY_PORT", "PLAIT_SERVICE", "PLAIT_PORTS_80_TCP"])
def test_what_only_looks_like_a_service_link_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        refuse_unknown_variables({name: "8000"}, ServeOptions.model_fields)


def test_the_port_of_a_service_called_plait_is_explained(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLAIT_PORT", "tcp://10.0.0.1:80")
    assert "enableServiceLinks: false" in complaint(capsys)


@pytest.mark.parametrize(
    ("arguments", "want"),
    [
        (["--device", "gpu"], "device: 'gpu' is no device: give cpu, cuda, or cuda:1"),
        (["--device", "cuda:"], "device: 'cuda:' is no device"),
        (["--device", "CPU"], "device: 'CPU' is no device"),
        (["--kv-cache-bytes", "1GGG"], "kv_cache_bytes: could not interpret byte unit"),
        (["--kv-cache-bytes", "9" * 30], "kv_cache_bytes: "),
        (["--kv-cache-bytes", "2EiB"], "kv_cache_bytes: "),
        (["--kv-cache-bytes", "-1"], "kv_cache_bytes: "),
        (["--draft-kv-cache-bytes", "1e30"], "draft_kv_cache_bytes: "),
        (["--compile-memory-bytes", "9" * 30], "compile_memory_bytes: "),
        (["--max-model-len", "1e400"], "max_model_len: "),
        (["--max-model-len", "9" * 30], "max_model_len: "),
        (["--max-num-seqs", "9" * 30], "max_num_seqs: "),
        (["--threads", "1000000"], "threads: "),
        (["--replicas", "1000000"], "replicas: "),
        (["--drain-s", "1e300"], "drain_s: "),
        (["--config", "."], "there is no configuration file '.'"),
    ],
)
def test_absurd_values_are_refused_before_anything_starts(
    capsys: pytest.CaptureFixture[str], arguments: list[str], want: str
) -> None:
    assert f"plait: {want}" in complaint(capsys, *arguments)


def test_documents_are_found_by_their_path_and_by_their_id(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts/zip.json").write_text('{"type": "integer"}')
    (tmp_path / "person.json").write_text('{"$id": "https://example.com/person#", "a": 1}')
    (tmp_path / "old.json").write_text('{"id": "https://example.com/old"}')
    (tmp_path / "true.json").write_text("true")
    (tmp_path / "notes.txt").write_text("no schema")
    found = load_schemas(tmp_path)

    assert found.keys() == {
        "parts/zip.json",
        "person.json",
        "https://example.com/person",
        "old.json",
        "https://example.com/old",
        "true.json",
    }
    assert found["https://example.com/person"]["a"] == 1
    assert load_schemas(None) == {}


@pytest.mark.parametrize(
    ("arguments", "want"),
    [
        (
            ["--compile-json-style", "objcts=open"],
            "compile_json_style: 'objcts' is none of whitespace, objects,",
        ),
        (
            ["--compile-json-style", "objects=opn"],
            "compile_json_style.objects: Input should be 'closed' or 'open'",
        ),
        (["--schema-folder", "/no/such/folder"], "schema_folder: there is no folder"),
    ],
)
def test_a_style_or_folder_that_is_none_is_refused(
    arguments: list[str], want: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert want in complaint(capsys, *arguments)


def test_a_file_in_the_folder_that_is_not_json_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.json").write_text("{")

    assert "bad.json is not JSON" in complaint(capsys, "--schema-folder", str(tmp_path))


def test_a_request_says_more_than_the_servers_style() -> None:
    server = JsonStyle(objects="open", key_order="any")

    assert JsonStyle().over(server) == server
    assert JsonStyle(objects="closed").over(server) == JsonStyle(objects="closed", key_order="any")
