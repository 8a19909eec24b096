"""The settings of a replica, from the ``args`` of an application in Serve's configuration."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradcam_server.config.click_options import from_values
from gradcam_server.config.file import to_settings
from gradcam_server.config.models import model_specs
from gradcam_server.config.settings import ServeConfig
from gradcam_server.errors import StartupError

# Settings that have no effect on Ray Serve, and where Ray is configured instead. An ignored
# setting, such as a token file, would be worse than an error.
_ELSEWHERE = {
    **dict.fromkeys(("host", "port"), "grpc_options of the configuration"),
    **dict.fromkeys(
        ("tls_certificate", "tls_key", "tls_client_ca", "allow_insecure", "token_file"),
        "a proxy in front of Ray's proxies, which have neither TLS nor tokens",
    ),
    **dict.fromkeys(("admin_port",), "serve deploy, which replaces replicas"),
    **dict.fromkeys(
        (
            *("http_host", "http_port", "http_cors_origin", "http_max_connections"),
            *("http_max_receive_s", "ui"),
        ),
        "Ray's dashboard and metrics; the API is gRPC's alone",
    ),
    **dict.fromkeys(
        ("max_streams", "max_connection_streams", "max_connection_age_s"),
        "max_ongoing_requests and max_queued_requests of the deployment",
    ),
    "max_message_bytes": "the variable RAY_SERVE_GRPC_MAX_MESSAGE_SIZE of Ray's processes",
    "drain_timeout_s": "graceful_shutdown_timeout_s of the deployment",
}


def read_args(args: Mapping[str, Any]) -> ServeConfig:
    """Reads the arguments. The keys are those of the file of ``gradcam serve --config``.

    Environment variables (GRADCAM_*) are ignored: they may differ from node to node, and the
    server's image sets some for a server. Relative paths are relative to the working directory.

    Raises:
        StartupError: A setting is unknown or wrong, or has no effect on Ray Serve.
    """
    config = from_values(to_settings(args, Path(), "args"))
    model_specs(config)
    for setting in dataclasses.fields(ServeConfig):
        where = _ELSEWHERE.get(setting.name)
        if where is not None and getattr(config, setting.name) != setting.default:
            raise StartupError(f"{setting.name} has no effect on Ray Serve; use instead: {where}")
    return config
