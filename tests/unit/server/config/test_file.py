"""Settings from a TOML file."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from gradcam_server.cli.serve import serve
from gradcam_server.config.file import read_config_file
from gradcam_server.config.models import model_specs
from gradcam_server.config.settings import ServeConfig
from gradcam_server.errors import StartupError


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Parses a command line of ``gradcam serve``; also as a reload does."""
    seen: list[ServeConfig] = []

    def run(config: ServeConfig, read_again) -> int:  # type: ignore[no-untyped-def]
        seen.append(config)
        assert read_again() == config
        return 0

    monkeypatch.setattr("gradcam_server.serving.run.run", run)
    monkeypatch.setattr("gradcam_server.telemetry.logs.configure", lambda *_: None)

    def parse(*arguments: str, **variables: str) -> ServeConfig:
        result = CliRunner().invoke(serve, arguments, env=variables)
        assert result.exit_code == 0, result.output
        return seen[-1]

    return parse


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "gradcam.toml"
    (tmp_path / "cats.keras").touch()
    (tmp_path / "names.txt").touch()
    path.write_text(
        """
        port = 7000
        batch_sizes = [1, 16]
        warm = ["layercam"]
        many_pass_share = 0.5

        [[models]]
        name = "cats"
        version = "2"
        path = "cats.keras"
        outputs = "sigmoid"
        labels = "names.txt"
        input_size = "160x160"

        [[models]]
        name = "vgg16"
        weights = "random"
        """
    )
    return path


def test_a_file_sets_what_flags_set(parse, file: Path) -> None:  # type: ignore[no-untyped-def]
    """Keys are the settings' names; paths are relative to the file."""
    config = parse("--config", str(file))
    assert (config.port, config.batch_sizes, config.warm) == (7000, (1, 16), ("layercam",))
    cats, vgg = model_specs(config)
    assert (cats.id, cats.source) == ("cats:2", str(file.parent / "cats.keras"))
    assert cats.outputs == "sigmoid"
    assert (cats.labels, cats.input_size) == (file.parent / "names.txt", (160, 160))
    assert (vgg.source, vgg.weights) == ("vgg16", "random")


def test_flags_win_over_variables_and_those_over_the_file(parse, file: Path) -> None:  # type: ignore[no-untyped-def]
    """A flag wins over a variable, and that over the file; a variable can name the file."""
    config = parse(
        *("--port", "9000"),
        GRADCAM_PORT="8000",
        GRADCAM_MANY_PASS_SHARE="0.1",
        GRADCAM_CONFIG=str(file),
    )
    assert (config.port, config.many_pass_share, config.batch_sizes) == (9000, 0.1, (1, 16))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot = 1", "unknown prot; the keys are: host, port"),
        ("port = ", "Invalid value"),
        ("models = 3", "models must be tables"),
        ("[[models]]\npath = 'x'", "needs a name"),
        ("[[models]]\nname = 'x'\nfile = 'x'", "unknown file; the keys are: name, version, path"),
        ("weights = ['random']\n[[models]]\nname = 'vgg16'", "either as"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    """The error names the file, what is wrong, and what would be right."""
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(StartupError, match=message) as caught:
        read_config_file(path)
    assert "wrong.toml" in str(caught.value)
    assert CliRunner().invoke(serve, ("--config", str(path))).exit_code == 1


def test_a_wrong_value_in_a_file_is_refused(tmp_path: Path) -> None:
    """It is checked as its flag is; a missing file is refused, too."""
    path = tmp_path / "wrong.toml"
    path.write_text("port = 70000")
    result = CliRunner().invoke(serve, ("--config", str(path)))
    assert result.exit_code == 2
    assert "--port" in result.output
    assert CliRunner().invoke(serve, ("--config", str(tmp_path / "none.toml"))).exit_code == 1


def test_files_of_security_are_beside_the_configuration(file: Path, parse) -> None:  # type: ignore[no-untyped-def]
    """Also before they are there; an absolute path stays."""
    file.write_text('token_file = "tokens.toml"\ntls_key = "/etc/key.pem"\nallow_insecure = true\n')
    config = parse("--config", str(file))
    assert config.token_file == str(file.parent / "tokens.toml")
    assert config.tls_key == "/etc/key.pem"
    assert config.allow_insecure
