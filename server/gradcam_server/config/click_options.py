"""The settings as options of click commands, and read from parsed options or from a table."""

import dataclasses
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

import click

from gradcam_server.config.settings import ServeConfig, flag, variable
from gradcam_server.domain.options import Compiler, Precision
from gradcam_server.errors import StartupError


def serve_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds an option for every setting, with its variable, to a click command."""
    return setting_options(*(setting.name for setting in dataclasses.fields(ServeConfig)))(command)


def setting_options(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Returns a decorator that adds the options of these settings to a click command."""
    settings = [field for field in dataclasses.fields(ServeConfig) if field.name in names]

    def add(command: Callable[..., None]) -> Callable[..., None]:
        for setting in reversed(settings):
            command = click.option(flag(setting.name), **_option_of(setting))(command)
        return command

    return add


def _option_of(setting: dataclasses.Field[Any]) -> dict[str, Any]:
    return {
        "type": setting.metadata["type"],
        "is_flag": setting.metadata["type"] is bool,
        "multiple": setting.metadata["many"],
        "default": _plain(setting.default),
        "show_default": bool(setting.default) or setting.default == 0,
        "envvar": variable(setting.name),
        "help": setting.metadata["help"],
    }


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, StrEnum) else value


def from_options(options: Mapping[str, Any]) -> ServeConfig:
    """Returns the settings from click's parsed options."""
    enums = {"compiler": Compiler, "precision": Precision}
    given = {name: kind(options[name]) for name, kind in enums.items() if name in options}
    return ServeConfig(**{**options, **given})


def from_values(values: Mapping[str, Any]) -> ServeConfig:
    """Returns the settings from values by name, as a file has them; variables are not read.

    Raises:
        StartupError: A value is wrong.
    """
    options: list[click.Parameter] = [
        click.Option([flag(setting.name)], **{**_option_of(setting), "envvar": None})
        for setting in dataclasses.fields(ServeConfig)
    ]
    command = click.Command("settings", params=options)
    try:
        params = command.make_context("settings", [], default_map=dict(values)).params
    except click.ClickException as error:
        raise StartupError(error.format_message()) from error
    return from_options(params)
