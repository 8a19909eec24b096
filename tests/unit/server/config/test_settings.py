"""Settings: flags, variables, defaults."""

import dataclasses

import pytest
from click.testing import CliRunner

from gradcam_server.cli.serve import serve
from gradcam_server.config.click_options import from_values
from gradcam_server.config.settings import ServeConfig, flag, variable
from gradcam_server.domain.options import Compiler, Precision
from gradcam_server.errors import StartupError


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Parses a command line of ``gradcam serve`` without serving."""
    seen: list[ServeConfig] = []

    def run(config: ServeConfig, _: object) -> int:
        seen.append(config)
        return 0

    monkeypatch.setattr("gradcam_server.serving.run.run", run)
    monkeypatch.setattr("gradcam_server.telemetry.logs.configure", lambda *_: None)

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
    "frontends": ("2", 2),
    "tls_certificate": ("server.pem", "server.pem"),
    "tls_key": ("server.key", "server.key"),
    "tls_client_ca": ("clients.pem", "clients.pem"),
    "allow_insecure": ("", True),
    "token_file": ("tokens.toml", "tokens.toml"),
    "admin_port": ("0", 0),
    "model": ("efficientnet-lite0", ("efficientnet-lite0",)),
    "weights": ("random", ("random",)),
    "preprocessing": ("caffe", ("caffe",)),
    "outputs": ("sigmoid", ("sigmoid",)),
    "labels": ("names.txt", ("names.txt",)),
    "input_size": ("160x160", ("160x160",)),
    "custom_objects": ("my_layers", ("my_layers",)),
    "seed": ("7", 7),
    "warm": ("layercam@top_conv", ("layercam@top_conv",)),
    "batch_sizes": ("8,1,8", (1, 8)),
    "compiler": ("xla", Compiler.XLA),
    "precision": ("bfloat16", Precision.BFLOAT16),
    "device": ("CPU:0", ("CPU:0",)),
    "device_memory_mib": ("4096", 4096),
    "compute_threads": ("3", 3),
    "compute_streams": ("2", 2),
    "cache_dir": ("/tmp/cache", "/tmp/cache"),
    "max_targets": ("3", 3),
    "max_layers": ("3", 3),
    "max_formats": ("3", 3),
    "max_answer_bytes": ("1000000", 1_000_000),
    "max_extra_graphs": ("0", 0),
    "max_passes": ("10", 10),
    "many_pass_share": ("0.5", 0.5),
    "max_held_bytes": ("4096", 4096),
    "max_queue_length": ("9", 9),
    "max_queue_wait_ms": ("2000", 2000),
    "max_queue_delay_us": ("500", 500),
    "max_send_s": ("7", 7.0),
    "max_stream_in_flight": ("2", 2),
    "max_streams": ("3", 3),
    "max_connection_streams": ("3", 3),
    "max_connection_age_s": ("60", 60.0),
    "max_image_pixels": ("1000", 1000),
    "reduced_decode": ("", True),
    "max_message_bytes": ("4096", 4096),
    "worker_threads": ("2", 2),
    "watchdog_s": ("5", 5.0),
    "sample_share": ("0.01", 0.01),
    "drain_timeout_s": ("1.5", 1.5),
    "http_host": ("0.0.0.0", "0.0.0.0"),
    "http_port": ("0", 0),
    "http_cors_origin": ("https://example.org", ("https://example.org",)),
    "http_max_connections": ("3", 3),
    "http_max_receive_s": ("2.5", 2.5),
    "ui": ("", True),
    "tracing": ("console", "console"),
    "log_level": ("debug", "debug"),
    "log_format": ("json", "json"),
}


@pytest.mark.parametrize("text", ["auto", "0", "1", "16"])
def test_streams_are_a_number_or_auto(parse, text: str) -> None:  # type: ignore[no-untyped-def]
    """The number of ``--compute-streams`` may be left to a measurement, as by default."""
    assert parse().compute_streams == "auto"
    assert parse("--compute-streams", text).compute_streams == (
        "auto" if text == "auto" else int(text)
    )


@pytest.mark.parametrize("text", ["-1", "many", "1.5", ""])
def test_other_streams_are_refused(text: str) -> None:
    """The text says what would be right."""
    with pytest.raises(StartupError, match=r"neither auto nor a number such as 0, 1 or 2"):
        from_values({"compute_streams": text})


def test_every_setting_has_an_example() -> None:
    """No setting escapes the test below."""
    assert {field.name for field in dataclasses.fields(ServeConfig)} == set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_setting_has_a_flag_and_a_variable_and_the_flag_wins(parse, name: str) -> None:  # type: ignore[no-untyped-def]
    """``--max-targets 3`` is GRADCAM_MAX_TARGETS=3."""
    text, value = EXAMPLES[name]
    arguments = (flag(name), text) if text else (flag(name),)
    assert getattr(parse(*arguments), name) == value
    assert getattr(parse(**{variable(name): text or "true"}), name) == value
    broken = {variable(name): "nonsense"}
    assert getattr(parse(*arguments, **broken), name) == value
