"""Hands the caller's OpenTelemetry trace on to the server; needs nothing to be installed."""

import sys


def trace_metadata() -> tuple[tuple[str, str], ...]:
    """Returns the metadata that make the server's spans children of the current one.

    Reads the context of the calling thread or task: call it where the user called us, not in a
    thread of ours. Formats other than W3C's are chosen by OTEL_PROPAGATORS.

    Returns:
        Such as ``(("traceparent", "00-..."),)``; nothing if no span is active.
    """
    # A span can be active only if somebody has imported OpenTelemetry; so we need not.
    if "opentelemetry.trace" not in sys.modules:
        return ()
    from opentelemetry import propagate, trace

    if not trace.get_current_span().get_span_context().is_valid:
        return ()
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    # gRPC refuses upper case, which some formats have.
    return tuple((name.lower(), value) for name, value in carrier.items())
