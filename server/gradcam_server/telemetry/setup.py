"""Turns tracing on, with OpenTelemetry, if the settings say so."""

from gradcam_server.errors import StartupError
from gradcam_server.telemetry.tracing import NO_TRACER, Tracer

MODES = ("off", "otlp", "console")


def configure_tracing(mode: str, version: str) -> Tracer:
    """Returns the tracer.

    The variables OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER,
    OTEL_PROPAGATORS, OTEL_BSP_*, OTEL_SPAN_*, OTEL_SDK_DISABLED and, for otlp,
    OTEL_EXPORTER_OTLP_* have their effects.

    Args:
        mode: "off"; "otlp" to send spans to a collector by gRPC; "console" to print them to
            stdout, one JSON object a line.
        version: The server's version.

    Raises:
        StartupError: There is no such mode, or OpenTelemetry is not installed.
    """
    if mode not in MODES:
        raise StartupError(f"--tracing {mode}: it must be one of {', '.join(MODES)}")
    if mode == "off":
        return NO_TRACER
    try:
        from gradcam_server.telemetry.otel import open_tracer
    except ImportError as error:
        raise StartupError(
            f"--tracing {mode} needs OpenTelemetry: pip install 'gradcam-server[tracing]'"
        ) from error
    return open_tracer(mode, version)
