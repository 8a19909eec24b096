"""Passes the current OpenTelemetry trace to the server, if OpenTelemetry is in use."""

import sys


def trace_metadata() -> tuple[tuple[str, str], ...]:
    """Returns the metadata that make the server's spans children of the current span.

    Reads the context of the calling thread or task, so it must be called in the thread or task of
    the user's call. OTEL_PROPAGATORS selects formats other than W3C's.

    Returns:
        For example ``(("traceparent", "00-..."),)``; empty if no span is active.
    """
    # A span can be active only if the application has imported OpenTelemetry.
    if "opentelemetry.trace" not in sys.modules:
        return ()
    from opentelemetry import propagate, trace

    if not trace.get_current_span().get_span_context().is_valid:
        return ()
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    # gRPC refuses upper case, which some formats use.
    return tuple((name.lower(), value) for name, value in carrier.items())
