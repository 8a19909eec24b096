"""The token file, which says who may call. It holds hashes, so a stolen file gives no access."""

import hashlib
import hmac
import logging
import math
import re
import secrets
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradcam_server.errors import StartupError
from gradcam_server.transport.security.files import Version, version

logger = logging.getLogger(__name__)

_KEYS = ("name", "sha256", "admin", "max_requests_per_s", "max_concurrent")
_NAME = re.compile(r"[\w.-]{1,64}", re.ASCII)
_HASH = re.compile("[0-9a-f]{64}")
_PREFIX = "gradcam_"


@dataclass(frozen=True)
class Token:
    """An entry of [[tokens]].

    Attributes:
        name: Name of the token's holder, in the metrics and in the log.
        sha256: Hexadecimal SHA-256 of the token; several while it is being replaced.
        admin: Whether the holder may administer.
        max_requests_per_s: Max requests per second in the long run; None is no limit.
        max_concurrent: Max requests in work at once; None is no limit.
    """

    name: str
    sha256: tuple[str, ...]
    admin: bool = False
    max_requests_per_s: float | None = None
    max_concurrent: int | None = None


def new_token() -> str:
    """Makes a token of 256 random bits."""
    return _PREFIX + secrets.token_urlsafe(32)


def hash_token(token: str) -> str:
    """Returns the hexadecimal SHA-256 of a token, as the file holds it."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def to_toml(token: Token) -> str:
    """Writes a token as an entry of the file."""
    lines = ["[[tokens]]", f'name = "{token.name}"']
    lines += [f'sha256 = "{sha256}"' for sha256 in token.sha256[:1]]
    if token.admin:
        lines.append("admin = true")
    for key in ("max_requests_per_s", "max_concurrent"):
        if (value := getattr(token, key)) is not None:
            lines.append(f"{key} = {value}")
    return "\n".join(lines) + "\n"


def check_name(name: Any) -> str:
    """Returns the name of a token, which becomes a label of metrics.

    Raises:
        ValueError: It is not 1 to 64 letters, digits, _, - or dots.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"the name {name!r} must be 1 to 64 letters, digits, _, - or dots")
    return name


class TokenFile:
    """The tokens of a TOML file, read again when it changes.

    Args:
        path: The file.

    Raises:
        StartupError: The file cannot be read, or holds anything but tokens.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: Version = version([path])
        self._tokens = read_tokens(path)

    def current(self) -> tuple[Token, ...]:
        """Returns the tokens. An invalid new file changes nothing; the log has the reason."""
        now = version([self._path])
        if now != self._seen:
            self._seen = now
            try:
                self._tokens = read_tokens(self._path)
            except StartupError as error:
                logger.error("The old tokens stay: %s", error)  # noqa: TRY400
            else:
                logger.info("Read %d tokens again from %s", len(self._tokens), self._path)
        return self._tokens

    def find(self, presented: str) -> Token | None:
        """Finds the entry of a token, in a time that does not depend on how close a guess is."""
        sha256, found = hash_token(presented), None
        for token in self.current():
            for known in token.sha256:
                if hmac.compare_digest(known, sha256):
                    found = token
        return found


def read_tokens(path: Path) -> tuple[Token, ...]:
    """Reads a file of [[tokens]].

    Raises:
        StartupError: The file cannot be read, or holds anything but tokens.
    """
    try:
        values = tomllib.loads(path.read_text("utf-8"))
        entries = values.pop("tokens", None)
        if values or not isinstance(entries, list) or not entries:
            raise ValueError("it must hold [[tokens]] and nothing else")  # noqa: TRY301
        tokens = tuple(_token(entry) for entry in entries)
        _check_unique(tokens)
    except (OSError, ValueError) as error:
        raise StartupError(f"--token-file {path}: {error}") from error
    return tokens


def _token(entry: Any) -> Token:
    if not isinstance(entry, Mapping):
        raise ValueError("tokens must be tables, [[tokens]]")  # noqa: TRY004 - a bad file
    name = check_name(entry.get("name"))
    if unknown := sorted(set(entry) - set(_KEYS)):
        raise ValueError(f"{name}: unknown {', '.join(unknown)}; the keys are: {', '.join(_KEYS)}")
    admin = entry.get("admin", False)
    if not isinstance(admin, bool):
        raise ValueError(f"{name}: admin must be true or false")  # noqa: TRY004 - a bad file
    concurrent = entry.get("max_concurrent")
    if concurrent is not None and (type(concurrent) is not int or concurrent < 1):
        raise ValueError(f"{name}: max_concurrent must be a whole number, 1 or more")
    return Token(name, _hashes(name, entry.get("sha256")), admin, _rate(name, entry), concurrent)


def _hashes(name: str, value: Any) -> tuple[str, ...]:
    hashes = value if isinstance(value, list) else [value]
    if not hashes or not all(isinstance(text, str) and _HASH.fullmatch(text) for text in hashes):
        raise ValueError(
            f"{name}: sha256 must be 64 hexadecimal digits in lower case, or a list of such; "
            "gradcam token makes one"
        )
    return tuple(hashes)


def _rate(name: str, entry: Mapping[str, Any]) -> float | None:
    rate = entry.get("max_requests_per_s")
    if rate is None:
        return None
    if type(rate) not in (int, float) or not 0 < rate < math.inf:
        raise ValueError(f"{name}: max_requests_per_s must be a number over 0")
    return float(rate)


def _check_unique(tokens: tuple[Token, ...]) -> None:
    names = [token.name for token in tokens]
    hashes = [sha256 for token in tokens for sha256 in token.sha256]
    if len(set(names)) < len(names):
        raise ValueError(
            "two tokens have the same name; to replace a token, give it both hashes: "
            'sha256 = ["OLD", "NEW"]'
        )
    if len(set(hashes)) < len(hashes):
        raise ValueError("two tokens have the same sha256")
