"""Settings: flags, variables, defaults."""

import dataclasses
from pathlib import Path

import pytest
from click.testing import CliRunner

from gradcam_server.cli.serve import serve
from gradcam_server.config.settings import ServeConfig, flag, variable
from gradcam_server.domain.model_spec import ModelSpec
from gradcam_server.domain.options import Compiler, Outputs, Precision
from gradcam_server.domain.preprocessing import Preprocessing
from gradcam_server.errors import StartupError


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Parses a command line of ``gradcam serve`` without serving."""
    seen: list[ServeConfig] = []

    def run(config: ServeConfig, _: object) -> int:
        seen.append(config)
        return 0

    monkeypatch.setattr("gradcam_server.serving.server.run", run)
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
    "tracing": ("console", "console"),
    "log_level": ("debug", "debug"),
    "log_format": ("json", "json"),
}


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


def specs(**options: tuple[str, ...]) -> dict[str, ModelSpec]:
    return {spec.name: spec for spec in ServeConfig(**options).model_specs()}  # type: ignore[arg-type]


def test_models_are_built_in_or_files() -> None:
    """NAME or NAME=PATH, in their order; the same source may have several names."""
    found = specs(model=("resnet50", "mine=dir=1/m.keras", "other=resnet50"), seed=3)  # type: ignore[arg-type]
    assert [(spec.name, spec.source) for spec in found.values()] == [
        ("resnet50", "resnet50"),
        ("mine", "dir=1/m.keras"),
        ("other", "resnet50"),
    ]
    assert found["resnet50"] == ModelSpec("resnet50", "resnet50", seed=3)


def test_weights_may_be_given_for_each_model() -> None:
    """MODEL=WEIGHTS is for one, a plain value for the others."""
    found = specs(model=("a=vgg16", "b=vgg16"), weights=("b=file=1.h5", "random"))
    assert (found["a"].weights, found["b"].weights) == ("random", "file=1.h5")
    found = specs(model=("a=vgg16", "b=vgg16"), weights=("b=x",))
    assert (found["a"].weights, found["b"].weights) == ("imagenet", "x")
    assert specs(model=("vgg16",), weights=("dir=1/w.h5",))["vgg16"].weights == "dir=1/w.h5"


def test_weights_for_all_leave_files_alone() -> None:
    """A file has its own; weights for it are passed on only to be refused."""
    found = specs(model=("vgg16", "mine=m.keras"), weights=("random",))
    assert (found["vgg16"].weights, found["mine"].weights) == ("random", "imagenet")
    assert specs(model=("mine=m.keras",), weights=("random",))["mine"].weights == "random"


def test_models_have_versions() -> None:
    """NAME:VERSION=PATH; options are for one version."""
    config = ServeConfig(model=("a:2=new.keras", "a:1=old.keras"), labels=("a:1=names.txt",))
    new, old = config.model_specs()
    assert (new.name, new.version, new.source, new.labels) == ("a", "2", "new.keras", None)
    assert (old.id, old.labels) == ("a:1", Path("names.txt"))


def test_options_of_models_are_read() -> None:
    """Preprocessing, labels and sizes go by model; outputs are of files; modules are for all."""
    found = specs(
        model=("vgg16", "mine=m.keras"),
        preprocessing=("mine=tf",),
        outputs=("probabilities",),
        labels=("mine=names.txt",),
        input_size=("mine=160x200",),
        custom_objects=("one", "two"),
    )
    mine = found["mine"]
    assert (mine.preprocessing, mine.labels) == (Preprocessing.TF, Path("names.txt"))
    assert (mine.input_size, mine.custom_objects) == ((160, 200), ("one", "two"))
    assert (mine.outputs, found["vgg16"].outputs) == (Outputs.PROBABILITIES, None)
    other = found["vgg16"]
    assert (other.preprocessing, other.labels, other.input_size) == (None, None, None)
    assert specs(input_size=("8x9",))["resnet50"].input_size == (8, 9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": ("random", "imagenet")}, "--weights was .* each must be MODEL=VALUE"),
        ({"labels": ("a.txt", "resnet=b.txt")}, "--labels was given as a.txt, resnet=b.txt"),
        ({"labels": ("resnet50=a", "resnet50=b")}, "--labels was given twice for resnet50"),
        ({"preprocessing": ("torhc",)}, "torhc: it must be one of none, caffe, torch, tf, lite"),
        ({"outputs": ("logit",)}, "logit: it must be one of logits, softmax, sigmoid, probab"),
        ({"input_size": ("224",)}, "224: it must be HEIGHTxWIDTH"),
        ({"input_size": ("0x5",)}, "0x5: it must be HEIGHTxWIDTH"),
        ({"model": ("resnet50", "resnet50")}, "two models of the name 'resnet50'"),
        ({"model": ("a=m.keras", "a=n.keras")}, "two models of the name 'a'"),
        ({"model": ("=m.keras",)}, "must be a name, NAME=PATH or NAME:VERSION=PATH"),
        ({"model": ("a:=m.keras",)}, "must be a name, NAME=PATH or NAME:VERSION=PATH"),
        ({"model": ("a:2",)}, "must be a name, NAME=PATH or NAME:VERSION=PATH"),
        ({"model": ("a:2=x", "a=y")}, "--model a: there are several.* it needs a version"),
        ({"model": ("a:2=x", "a:2=y")}, "there are two models of the name 'a:2'"),
        ({"model": ("a=",)}, "must be a name, NAME=PATH or NAME:VERSION=PATH"),
    ],
)
def test_contradicting_options_are_refused(
    options: dict[str, tuple[str, ...]], message: str
) -> None:
    """Before anything is loaded, and with what would be right."""
    with pytest.raises(StartupError, match=message):
        specs(**options)
