"""Replaces the models and tokens of a running server by those of the current settings."""

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from gradcam_server.config.settings import ServeConfig
from gradcam_server.config.shares import share
from gradcam_server.errors import (
    ExplanationServerError,
    NotReadyError,
    ReloadError,
    failure_reason,
    is_expected,
)
from gradcam_server.serving.supervisor import Supervisor
from gradcam_server.transport import admin
from gradcam_server.transport.grpc_server import FrontEnd
from gradcam_server.transport.lifecycle import Phase
from gradcam_server.transport.security.access import read_token_file

logger = logging.getLogger(__name__)

# Settings of the listener or of the whole process, which a reload cannot change.
_FIXED = (
    *("host", "port", "frontends", "admin_port", "allow_insecure"),
    *("tls_certificate", "tls_key", "tls_client_ca"),
    *("max_connection_streams", "max_connection_age_s"),
    *("max_message_bytes", "max_stream_in_flight", "drain_timeout_s"),
    *("max_held_bytes", "max_send_s"),
)


class Reloader:
    """Reloads on request or by signal.

    Args:
        config: The settings at the start.
        read_again: Reads the settings again.
        front_end: Gets the new tokens.
        supervisor: Replaces the engine.
    """

    def __init__(
        self,
        config: ServeConfig,
        read_again: Callable[[], ServeConfig],
        front_end: FrontEnd,
        supervisor: Supervisor,
    ) -> None:
        self._config, self._read_again = config, read_again
        self._front_end, self._supervisor = front_end, supervisor

    async def reload(self) -> admin.Reloaded:
        """Replaces the models and tokens by those of the current settings.

        Raises:
            ReloadError: They cannot be served. The old models and tokens stay.
            NotReadyError: The server is warming up or draining.
        """
        try:
            # While an engine is restarted, the current settings may be the remedy.
            if self._front_end.lifecycle.phase is not Phase.RESTARTING:
                self._front_end.lifecycle.check()
            config = self._read_again()
            changed = [
                name for name in _FIXED if getattr(config, name) != getattr(self._config, name)
            ]
            if changed:
                logger.warning("Not changed before a restart: %s", ", ".join(changed))
            tokens = read_token_file(config)
            config = replace(config, frontends=self._config.frontends)
            shared = share(config)
            await self._supervisor.reload(config)
        except Exception as error:
            reason = failure_reason(error)
            fault = None if is_expected(error) else error
            logger.error(  # noqa: TRY400
                "Reloading failed, the old models go on: %s", reason, exc_info=fault
            )
            if isinstance(error, NotReadyError):
                raise
            raise ReloadError(f"reloading failed, the old models go on: {reason}") from error
        self._front_end.access.configure(shared, tokens)
        logger.info("Reloaded")
        return admin.Reloaded(self._front_end.models(), changed)

    async def reload_by_signal(self) -> None:
        """Reloads as ``reload``; a failure is only logged."""
        with suppress(ExplanationServerError):  # it is logged
            await self.reload()
