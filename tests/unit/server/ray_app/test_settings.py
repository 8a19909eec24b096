"""The settings of replicas."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from gradcam_server.config.models import model_specs
from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.options import Compiler
from gradcam_server.errors import StartupError
from gradcam_server.ray_app.settings import read_args

CONFIG = Path(__file__).resolve().parents[4] / "deploy" / "ray" / "serve_config.yaml"


def test_the_keys_are_those_of_a_configuration_file() -> None:
    """Tables of models are read too, and values are parsed as those of flags."""
    config = read_args(
        {
            "models": [
                {"name": "cats", "version": 2, "path": "cats.keras", "input_size": "96x96"},
                {"name": "resnet50", "weights": "random"},
            ],
            "batch_sizes": [1, 8],
            "compiler": "tensorflow",
            "many_pass_share": 0.5,
        }
    )
    assert config.batch_sizes == (1, 8)
    assert config.compiler is Compiler.TENSORFLOW
    assert [(one.id, one.source) for one in model_specs(config)] == [
        ("cats:2", "cats.keras"),
        ("resnet50", "resnet50"),
    ]
    assert read_args({}) == ServeConfig()


def test_the_environment_of_a_node_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's image sets variables for a server, such as its port and default model."""
    monkeypatch.setenv("GRADCAM_HOST", "0.0.0.0")
    monkeypatch.setenv("GRADCAM_MODEL", "vgg16")
    assert read_args({"model": ["efficientnet-lite0"]}).model == ("efficientnet-lite0",)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"batchsizes": [1]}, "args: unknown batchsizes; the keys are: "),
        ({"batch_sizes": [0]}, "not a list of positive numbers"),
        ({"models": [{"path": "x"}]}, "needs a name"),
        ({"model": ["a=1", "a=2"]}, "two models of the name 'a'"),
        ({"token_file": "tokens.toml"}, "token_file has no effect on Ray Serve; use inste"),
        ({"tls_certificate": "server.pem"}, "have neither TLS nor tokens"),
        ({"port": 7000}, "grpc_options"),
        ({"drain_timeout_s": 5}, "graceful_shutdown_timeout_s"),
    ],
)
def test_what_is_wrong_or_without_effect_is_refused(args: dict[str, Any], message: str) -> None:
    """The error comes before a replica starts; an ignored token file would be worse."""
    with pytest.raises(StartupError, match=message):
        read_args(args)


def test_the_configuration_that_we_ship_can_be_read() -> None:
    """Its application has our settings, and its proxies have our services."""
    config = yaml.safe_load(CONFIG.read_text("utf-8"))
    (application,) = config["applications"]
    assert [spec.id for spec in model_specs(read_args(application["args"]))] == [
        "efficientnet-lite0"
    ]
    assert config["grpc_options"]["grpc_servicer_functions"] == [
        "gradcam_server.ray_app.proxy.add_services"
    ]
