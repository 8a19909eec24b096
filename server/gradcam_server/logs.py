"""Logging."""

import logging


def configure(level: str, format: str = "text") -> None:
    """Sets logging up."""
    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
