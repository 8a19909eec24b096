"""The part that each of several front ends has of a limit on all of them."""

from dataclasses import replace

from gradcam_server.config.settings import ServeConfig, flag
from gradcam_server.errors import StartupError

_DIVIDED = ("max_queue_length", "max_streams", "max_held_bytes")


def share(config: ServeConfig) -> ServeConfig:
    """Returns the settings of one front end: its part of each limit on all, rounded down.

    ``Access`` divides the limits of tokens.

    Raises:
        StartupError: A limit is less than the number of front ends.
    """
    count = config.frontends
    if count == 1:
        return config
    parts = {}
    for name in _DIVIDED:
        limit = getattr(config, name)
        if limit is None:
            continue
        if limit < count:
            raise StartupError(
                f"{flag(name)} {limit} cannot be divided among {count} front ends: it must be at "
                f"least {count}, or --frontends at most {limit}"
            )
        parts[name] = limit // count
    return replace(config, **parts)
