"""Settings: flags, variables, defaults."""

import dataclasses

import pytest
from click.testing import CliRunner

from gradcam_server.cli.serve import serve
from gradcam_server.config import Compiler, ServeConfig, flag, variable
from gradcam_server.errors import StartupError


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Parses a command line of ``gradcam serve`` without serving."""
    seen: list[ServeConfig] = []

    def run(config: ServeConfig) -> int:
        seen.append(config)
        return 0

    monkeypatch.setattr("gradcam_server.server.run", run)

    def parse(*arguments: str, **variables: str) -> ServeConfig:
        result = CliRunner().invoke(serve, arguments, env=variables)
        assert result.exit_code == 0, result.output
        return seen[-1]

    return parse


def test_the_command_lines_defaults_are_those_of_the_settings(parse) -> None:  # type: ignore[no-untyped-def]
    """``gradcam serve`` and ``ServeConfig()`` agree."""
    assert parse() == ServeConfig()


EXAMPLES: dict[str, tuple[str, object]] = {
    "host": ("0.0.0.0", "0.0.0.0"),
    "port": ("0", 0),
    "model": ("efficientnet-lite0", ("efficientnet-lite0",)),
    "weights": ("random", ("random",)),
    "seed": ("7", 7),
    "layer": ("conv1_relu", ("conv1_relu",)),
    "batch_sizes": ("8,1,8", (1, 8)),
    "compiler": ("xla", Compiler.XLA),
    "max_targets": ("3", 3),
    "max_extra_graphs": ("0", 0),
    "max_queue_length": ("9", 9),
    "max_queue_delay_us": ("500", 500),
    "max_stream_in_flight": ("2", 2),
    "max_image_pixels": ("1000", 1000),
    "max_message_bytes": ("4096", 4096),
    "worker_threads": ("2", 2),
    "drain_timeout_s": ("1.5", 1.5),
    "log_level": ("debug", "debug"),
}


def test_every_setting_has_an_example() -> None:
    """No setting escapes the test below."""
    assert {field.name for field in dataclasses.fields(ServeConfig)} == set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_setting_has_a_flag_and_a_variable_and_the_flag_wins(parse, name: str) -> None:  # type: ignore[no-untyped-def]
    """``--max-targets 3`` is GRADCAM_MAX_TARGETS=3."""
    text, value = EXAMPLES[name]
    assert getattr(parse(flag(name), text), name) == value
    assert getattr(parse(**{variable(name): text}), name) == value
    broken = {variable(name): "nonsense"}
    assert getattr(parse(flag(name), text, **broken), name) == value


def test_weights_may_be_given_for_each_model() -> None:
    """MODEL=WEIGHTS is for one, a plain value for the others."""
    config = ServeConfig(model=("a", "b"), weights=("b=file=1.h5", "random"))
    assert config.weights_of("a") == "random"
    assert config.weights_of("b") == "file=1.h5"
    assert ServeConfig(model=("a", "b"), weights=("b=x",)).weights_of("a") == "imagenet"
    assert ServeConfig(model=("a",), weights=("dir=1/w.h5",)).weights_of("a") == "dir=1/w.h5"


def test_contradicting_weights_are_refused() -> None:
    """Two plain values cannot both be meant."""
    with pytest.raises(StartupError, match="each must be MODEL=WEIGHTS"):
        ServeConfig(weights=("random", "imagenet")).weights_of("resnet50")
