"""Command lines of the benchmarks that take options: parsed and refused as `plait serve` does."""

from __future__ import annotations

from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from plait.server.cli import run_command

__all__ = ["Command", "command_config", "run_command"]


def command_config(module: str) -> SettingsConfigDict:
    """Return the settings of the command `python -m MODULE`."""
    return SettingsConfigDict(
        cli_prog_name=f"python -m {module}",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_enforce_required=True,
    )


class Command(BaseSettings):
    """Options that come from the command line only: a variable such as SEED is not for us."""

    @classmethod
    def settings_customise_sources(  # the signature is the library's
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Ignore the environment."""
        return (init_settings,)
