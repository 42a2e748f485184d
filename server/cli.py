"""The command `plait`: the only reader of the command line, the environment and YAML files."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import TypeVar

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliApp,
    CliSubCommand,
    SettingsConfigDict,
    SettingsError,
    get_subcommand,
)

from plait.server.calibration.ada_dec import AdaDecCalibration
from plait.server.options.serve import ServeOptions
from plait.server.parser import make_source
from plait.server.serve import run
from plait.server.telemetry.streams import open_standard_streams

EXIT_USAGE = 2
SUBCOMMANDS = ("serve", "calibrate", "ada_dec")

Command = TypeVar("Command", bound=BaseSettings)


class VersionOptions(BaseSettings):
    """Print the version."""


class CalibrateOptions(BaseSettings):
    """Measure an option of a decoding method that depends on the model."""

    ada_dec: CliSubCommand[AdaDecCalibration] = Field(
        description="The entropy from which ada-dec looks ahead."
    )


class Plait(BaseSettings):
    """An OpenAI-compatible inference server: `plait serve` starts it on 127.0.0.1:8000."""

    model_config = SettingsConfigDict(
        cli_prog_name="plait",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_enforce_required=True,
    )

    serve: CliSubCommand[ServeOptions] = Field(description="Serve models.")
    calibrate: CliSubCommand[CalibrateOptions] = Field(
        description="Measure options that depend on the model."
    )
    version: CliSubCommand[VersionOptions] = Field(description="Print the version.")

    def cli_cmd(self) -> None:
        """Run the subcommand."""
        chosen = get_subcommand(self, cli_exit_on_error=False)
        if isinstance(chosen, ServeOptions):
            sys.exit(run(chosen.settings()))
        if isinstance(chosen, CalibrateOptions):
            method = get_subcommand(chosen, cli_exit_on_error=False)
            assert isinstance(method, AdaDecCalibration), "the only one"
            sys.exit(method.run())
        sys.stdout.write(f"plait {version('plait')}\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line of `plait`."""
    open_standard_streams()
    run_command(Plait, arguments)


def run_command(command: type[Command], arguments: Sequence[str] | None = None) -> Command:
    """Parse a command line, run the command's `cli_cmd` if it has one, and return the command.

    Wrong usage ends the process with exit code 2 and one line for each mistake.

    Args:
        arguments: The command line without the program; None: this process's own.
    """
    try:
        given = list(sys.argv[1:] if arguments is None else arguments)
        return CliApp.run(command, cli_args=given, cli_settings_source=make_source(command))
    except ValidationError as error:
        for mistake in error.errors(include_url=False, include_input=False):
            where = ".".join(str(part) for part in mistake["loc"] if part not in SUBCOMMANDS)
            what = mistake["msg"].removeprefix("Value error, ")
            sys.stderr.write(f"plait: {where}: {what}\n" if where else f"plait: {what}\n")
        sys.exit(EXIT_USAGE)
    except (SettingsError, ValueError, OSError) as error:
        sys.stderr.write(f"plait: {error}\n")
        sys.exit(EXIT_USAGE)
