"""The options of `python -m benchmarks.structured`."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr
from pydantic_settings import CliPositionalArg, CliSubCommand

from benchmarks.command_line import Command, command_config
from benchmarks.machine import ROOT
from benchmarks.maskbench import SHARED
from benchmarks.servers import SERVERS
from benchmarks.structured.engines import ENGINES, STANDARD
from benchmarks.structured.suite import DIALECTS
from plait.server.config_sources import Count, Seconds, Texts

WALKED = tuple(name for name in ENGINES if name != STANDARD)
SAMPLE = SHARED / "maskbench-sample.jsonl.gz"


def _among(known: Collection[str]) -> AfterValidator:
    """Return a check that every name of a list is known."""

    def check(names: list[str]) -> list[str]:
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"{', '.join(unknown)}: not among {', '.join(known)}")
        return names

    return AfterValidator(check)


class SuiteOptions(Command):
    """Give schemas and their instances to engines in this machine's processes, without a server.

    Exit code 1 when plait accepts an invalid instance.
    """

    corpora: CliPositionalArg[list[Path]] = Field(
        [],
        description="Archives of the JSON-Schema-Test-Suite (.tar.gz) or schemas as JSON lines "
        "(.jsonl.gz); none: the Test-Suites beside the repository.",
    )
    drafts: Annotated[Texts, _among(DIALECTS)] = Field(
        [*DIALECTS], description="Drafts of the Test-Suite."
    )
    engines: Annotated[Texts, _among(ENGINES)] = Field(
        [*ENGINES], description="Engines; those that are not installed are left out."
    )
    deadline: Seconds = Field(30.0, description="Seconds that a schema may take.")
    journal: Path | None = Field(
        None, description="JSON lines of all that is judged; a run that was stopped goes on there."
    )
    output: Path | None = Field(
        None, description="JSON file for the findings; the tables are written beside it."
    )


class WalkOptions(Command):
    """Walk valid instances through masks, token by token, over a model's vocabulary (MaskBench)."""

    corpus: Path = Field(SAMPLE, description="Schemas as JSON lines (.jsonl.gz).")
    engines: Annotated[Texts, _among(WALKED)] = Field(
        [*WALKED], description="Engines; those that are not installed are left out."
    )
    model: str = Field("smollm2-135m-instruct", description="Whose vocabulary and tokenizer.")
    every: Count = Field(1, description="Take every so manieth schema.")
    deadline: Seconds = Field(60.0, ge=1, description="Seconds that a schema may take.")
    output: Path | None = Field(None, description="File for the table.")


class HttpOptions(Command):
    """Measure coverage and speed of structured output over HTTP (JSONSchemaBench's metrics).

    Each schema is asked for once; the other outputs come from the schemas that were accepted.
    Servers are started one after the other.
    """

    servers: Annotated[Texts, _among(SERVERS)] = Field(
        ["plait"], description="Servers that are started here, by name."
    )
    url: str | None = Field(None, description="In place of them a server that runs, by its URL.")
    api_key: SecretStr | None = Field(None, description="Key of the server at --url.")
    model: str | None = Field(
        None, description="Model; none: smollm2-135m-instruct, at --url the first one listed."
    )
    corpus: Path = Field(SAMPLE, description="Schemas as JSON lines (.jsonl.gz).")
    schemas: Count = Field(300, description="Schemas, drawn by the seed.")
    outputs: Count = Field(1000, description="Requests for accepted schemas.")
    streams: Count = Field(8, description="Requests at once.")
    alone: bool = Field(
        True, description="Send the first one of each schema alone, so that its times count."
    )
    temperature: float = Field(1.0, ge=0, le=2, description="Of each request.")
    seed: int = Field(0, ge=0, lt=2**31, description="Of the schemas, prompts and requests.")
    max_tokens: Count = Field(256, description="Of each output.")
    timeout: Seconds = Field(120.0, description="Seconds after which a request counts as failed.")
    peers: Path = Field(ROOT, description="Where `benchmarks/install_peers.sh` put other servers.")
    journal: Path | None = Field(
        None, description="JSON lines of all answers; a run that was stopped goes on there."
    )
    files: Path | None = Field(None, description="Where peers' model files and logs are kept.")
    output: Path | None = Field(
        None, description="JSON file for the findings; the table is written beside it."
    )


class CanvasOptions(Command):
    """Compare what decides under a schema on the canvases of tiny-diffusion, and fill holes."""

    cases: Count = Field(50, description="Questions with their schemas.")
    rounds: Count = Field(3, description="Times that each method answers them; the median counts.")
    output: Path | None = Field(
        None, description="JSON file for the findings; the tables are written beside it."
    )


class FaithfulOptions(Command):
    """Compare searches that sample with the model's law given the constraint; no server is needed.

    Also counts the checks of `awrs`, and times plain streams beside searches.
    """

    model: str = Field("smollm2-135m-instruct", description="Built-in name, file or folder.")
    samples: Count = Field(40, description="Samples of each search and task.")
    seed: int = Field(0, ge=0, lt=2**31, description="Of the first request.")
    output: Path | None = Field(
        None, description="JSON file for the findings; the tables are written beside it."
    )


class StructuredOptions(Command):
    """Structured output: which schemas are enforced, how faithfully, and how fast."""

    model_config = command_config("benchmarks.structured")

    suite: CliSubCommand[SuiteOptions] = Field(description="Engines before test suites.")
    walk: CliSubCommand[WalkOptions] = Field(description="Engines token by token: their times.")
    http: CliSubCommand[HttpOptions] = Field(description="Servers over HTTP.")
    canvases: CliSubCommand[CanvasOptions] = Field(description="Methods of a diffusion model.")
    faithful: CliSubCommand[FaithfulOptions] = Field(description="Samples before their exact law.")
