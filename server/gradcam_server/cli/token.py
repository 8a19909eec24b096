"""``gradcam token``."""

import shutil
from pathlib import Path

import click

from gradcam_server.cli.errors import errors_for_people
from gradcam_server.errors import StartupError
from gradcam_server.transport.security.tokens import (
    Token,
    check_name,
    hash_token,
    new_token,
    read_tokens,
    to_toml,
)


def _check_name(_: click.Context, __: click.Parameter, name: str) -> str:
    try:
        return check_name(name)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command()
@click.argument("name", callback=_check_name)
@click.option("--admin", is_flag=True, help="Also allow the admin service.")
@click.option(
    "--max-requests-per-s",
    type=click.FloatRange(min=0, min_open=True),
    help="Maximum requests per second in the long run.  [default: no limit]",
)
@click.option(
    "--max-concurrent",
    type=click.IntRange(min=1),
    help="Maximum concurrent requests.  [default: no limit]",
)
@click.option(
    "--append",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Token file to add the entry to, created if needed; only the token is printed.",
)
def token(
    name: str,
    admin: bool,
    max_requests_per_s: float | None,
    max_concurrent: int | None,
    file: Path | None,
) -> None:
    """Make a random token for NAME, and its entry for the file of serve's --token-file.

    The file holds only a hash: the token cannot be shown again.
    """
    secret = new_token()
    entry = Token(name, (hash_token(secret),), admin, max_requests_per_s, max_concurrent)
    if file is None:
        click.echo(f"{secret}\n\n{to_toml(entry)}", nl=False)
        return
    with errors_for_people():
        _append(file, entry)
    click.echo(secret)


def _append(file: Path, entry: Token) -> None:
    old = ""
    if file.exists():
        if any(known.name == entry.name for known in read_tokens(file)):
            raise StartupError(
                f"{file} has a token of the name {entry.name}; to replace it, make its sha256 a "
                "list and add the new hash"
            )
        old = file.read_text("utf-8").rstrip("\n") + "\n\n"
    # The file is replaced, so that a server never reads half of it.
    fresh = file.with_name(f".{file.name}.new")
    fresh.write_text(old + to_toml(entry), "utf-8")
    if file.exists():
        shutil.copymode(file, fresh)
    fresh.replace(file)
