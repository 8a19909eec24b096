"""Pickles a client as its arguments, with which the other process opens its own connections."""

import pickle
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from gradcam_client.security import TlsFiles

_Client = TypeVar("_Client")

_IN_EACH_PROCESS = "make the client in each process, for instance in the initializer of a pool"


def picklable(kind: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of a client in a form that can be pickled, for ``reopen``.

    Args:
        kind: The name of the client's class, for errors.
        arguments: The arguments of the client. TLS credentials become the paths of their files.

    Raises:
        TypeError: An argument cannot be pickled, such as a channel or a lambda.
    """
    if arguments["channel"] is not None:
        raise TypeError(
            f"a {kind} with a channel of its own cannot be pickled or copied: a channel belongs "
            f"to one process; {_IN_EACH_PROCESS}"
        )
    found = {**arguments, "credentials": TlsFiles.of(arguments["credentials"])}
    if arguments["credentials"] is not None and found["credentials"] is None:
        raise TypeError(
            f"a {kind} whose credentials tls_credentials() did not make cannot be pickled or "
            f"copied; {_IN_EACH_PROCESS}"
        )
    for name, value in found.items():
        try:
            pickle.dumps(value)
        except Exception as error:
            raise TypeError(
                f"this {kind} cannot be pickled or copied, because its {name} cannot ({error}); "
                f"give a {name} that can, such as a function of a module, or {_IN_EACH_PROCESS}"
            ) from error
    return found


def reopen(kind: Callable[..., _Client], arguments: Mapping[str, Any]) -> _Client:
    """Makes a client from the arguments that ``picklable`` returned."""
    files: TlsFiles | None = arguments["credentials"]
    return kind(**{**arguments, "credentials": files.read() if files else None})
