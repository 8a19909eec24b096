"""Connects commands to a server: TLS and tokens, by the same options for all commands."""

import functools
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import click
import grpc
from click.core import ParameterSource

from gradcam_client import AsyncClient, Client, RetryPolicy, tls_credentials
from gradcam_client.security import check_token
from gradcam_client.transport import (
    DEFAULT_RETRY,
    ChannelOptions,
    Metadata,
    bearer,
    open_channel,
    split_target,
)
from gradcam_server.config.settings import flag, variable

BELONGS_TO_SERVER = (
    "belongs to the server: give it to gradcam serve, and leave it out with --server"
)
TOKEN_VARIABLE = variable("token")

# The flags of the files, by their names in the client library.
_FLAGS = {"root": "--tls-ca", "certificate": "--tls-cert", "key": "--tls-key"}

_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Connection:
    """TLS and token of connections to servers. Files are read when a client or channel is made.

    Attributes:
        tls: Whether to use TLS; the other settings of TLS imply it.
        tls_ca: PEM file of the authorities to trust; None is gRPC's own list.
        tls_cert: PEM file of this client's certificate, for mutual TLS.
        tls_key: PEM file of the certificate's private key.
        tls_server_name: The name in the server's certificate; None is the address.
        token_file: File whose first line is a token; None is the variable GRADCAM_TOKEN.
    """

    tls: bool = False
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_server_name: str | None = None
    token_file: Path | None = None

    def client(self, server: str, retry: RetryPolicy = DEFAULT_RETRY) -> Client:
        """Makes a client for one server, or for several, "a:1,b:2".

        Args:
            server: The server or servers.
            retry: The retry policy.

        Raises:
            click.ClickException: A file is not usable, the token would be sent in plain text, or
                ``server`` is not an address.
        """
        return Client(server, retry=retry, **self._arguments(server))

    def aio_client(self, server: str, retry: RetryPolicy = DEFAULT_RETRY) -> AsyncClient:
        """Makes an asynchronous client, otherwise as ``client`` does.

        Raises:
            click.ClickException: As for ``client``.
        """
        return AsyncClient(server, retry=retry, **self._arguments(server))

    def channel(self, address: str) -> grpc.Channel:
        """Makes a channel to one server, for services that the client does not have.

        Raises:
            click.ClickException: As for ``client``.
        """
        channel: grpc.Channel = open_channel(
            grpc, address, self._credentials(address), self._channel_options
        )
        return channel

    def aio_channel(self, address: str, options: ChannelOptions = ()) -> grpc.aio.Channel:
        """Makes a channel to one server for the running event loop.

        Raises:
            click.ClickException: As for ``client``.
        """
        options = (*self._channel_options, *options)
        channel: grpc.aio.Channel = open_channel(
            grpc.aio, address, self._credentials(address), options
        )
        return channel

    @property
    def metadata(self) -> Metadata:
        """The metadata for calls on such a channel: the token, if there is one.

        Raises:
            click.ClickException: The token's file is not usable.
        """
        return () if self._token is None else (("authorization", bearer(self._token)),)

    def _arguments(self, server: str) -> dict[str, Any]:
        return {
            "credentials": self._credentials(server),
            "token": self._token,
            "channel_options": self._channel_options,
        }

    @property
    def _channel_options(self) -> ChannelOptions:
        name = self.tls_server_name
        return () if name is None else (("grpc.ssl_target_name_override", name),)

    def _credentials(self, server: str) -> grpc.ChannelCredentials | None:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise click.UsageError(
                "mutual TLS needs both --tls-cert and --tls-key; TLS alone needs neither"
            )
        names = (self.tls_ca, self.tls_cert, self.tls_key, self.tls_server_name)
        credentials = None
        try:
            targets = split_target(server)
            if self.tls or any(name is not None for name in names):
                credentials = tls_credentials(self.tls_ca, self.tls_cert, self.tls_key)
        except OSError as error:
            raise click.ClickException(f"cannot read {error.filename}: {error.strerror}") from error
        except ValueError as error:
            name, space, rest = str(error).partition(" ")
            raise click.ClickException(f"{_FLAGS.get(name, name)}{space}{rest}") from error
        token, secure = self._token, credentials is not None
        try:
            check_token(token, targets, secure=secure, allow_insecure=False)
        except ValueError as error:
            raise click.ClickException(
                f"a token to {server} needs TLS: --tls, or --tls-ca FILE"
            ) from error
        return credentials

    # Cached: a pipe can be read only once.
    @cached_property
    def _token(self) -> str | None:
        if self.token_file is None:
            where, text = TOKEN_VARIABLE, _token_variable()
            if not text:
                return None
        else:
            where = f"--token-file {self.token_file}"
            try:
                text = self.token_file.read_text("utf-8")
            except OSError as error:
                raise click.ClickException(f"{where}: {error.strerror}") from error
            except UnicodeDecodeError as error:
                raise click.ClickException(f"{where}: it is not text") from error
        token = text.strip().partition("\n")[0].strip()
        if token.startswith("["):
            raise click.ClickException(
                f"{where} is a server's file of hashes; gradcam token prints the token itself"
            )
        try:
            bearer(token)
        except ValueError as error:
            raise click.ClickException(f"{where}: {error}") from error
        return token


def refuse_given(ctx: click.Context, names: Iterable[str], why: str) -> None:
    """Refuses options that would have no effect; their variables may be set for other commands.

    Args:
        ctx: The command's context.
        names: The parameters of the options.
        why: The text after the flag in the error.

    Raises:
        click.UsageError: An option is on the command line.
    """
    for name in names:
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name.replace('_', '-')} {why}", ctx)


def check_server_options(server: str | None, model: str, of_the_model: Iterable[str]) -> None:
    """Refuses options of a command that have no effect with --server, or without it.

    Args:
        server: The server, if one is given.
        model: The model's name.
        of_the_model: The parameters of options that load a model in this process.

    Raises:
        click.UsageError: Such an option is on the command line.
    """
    ctx = click.get_current_context()
    if not server:
        of_the_connection = (field.name for field in fields(Connection))
        refuse_given(ctx, of_the_connection, "needs --server: it says how to connect to one")
        return
    refuse_given(ctx, of_the_model, BELONGS_TO_SERVER)
    if "=" in model:
        raise click.UsageError(
            "--model NAME=PATH loads a file in this process; with --server give the name of one "
            "of the server's models",
            ctx,
        )


def connection_options(*, tls_variables: bool = True) -> Callable[[_F], _F]:
    """Makes a decorator that adds the options of a ``Connection``, given as ``connection``.

    Args:
        tls_variables: Whether environment variables set the options of TLS, too.
    """

    def decorate(command: _F) -> _F:
        @functools.wraps(command)
        def connected(*args: Any, **options: Any) -> Any:
            taken = {field.name: options.pop(field.name) for field in fields(Connection)}
            return command(*args, connection=Connection(**taken), **options)

        decorated: Any = connected
        for name, option in reversed(_OPTIONS.items()):
            is_variable = tls_variables or not name.startswith("tls")
            envvar = variable(f"client_{name}") if is_variable else None
            decorated = click.option(
                flag(name), show_envvar=True, show_default=False, envvar=envvar, **option
            )(decorated)
        return decorated

    return decorate


def _unless_token_is_given(
    ctx: click.Context, param: click.Parameter, value: Path | None
) -> Path | None:
    """Prefers GRADCAM_TOKEN to the variable of --token-file."""
    source = ctx.get_parameter_source(param.name or "")
    if source is ParameterSource.ENVIRONMENT and _token_variable():
        return None
    return value


def _token_variable() -> str:
    return os.environ.get(TOKEN_VARIABLE, "").strip()


_FILE: dict[str, Any] = {"type": Path, "metavar": "FILE"}
_OPTIONS: dict[str, dict[str, Any]] = {
    "tls": {
        "is_flag": True,
        "help": "Connect by TLS, and trust gRPC's own list of authorities.",
    },
    "tls_ca": {
        **_FILE,
        "help": "PEM file of the authorities to trust instead; implies --tls.",
    },
    "tls_cert": {
        **_FILE,
        "help": "PEM file of this client's certificate, for mutual TLS; implies --tls.",
    },
    "tls_key": {
        **_FILE,
        "help": "PEM file of the certificate's private key, not encrypted.",
    },
    "tls_server_name": {
        "metavar": "NAME",
        "help": "Name in the server's certificate if it is not the address; implies --tls.",
    },
    "token_file": {
        **_FILE,
        "callback": _unless_token_is_given,
        "help": "File whose first line is the token to send; it needs TLS, unless the server is "
        f"on this machine. The variable {TOKEN_VARIABLE} may hold a token instead.",
    },
}
