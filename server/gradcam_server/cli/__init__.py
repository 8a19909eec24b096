"""The ``gradcam`` command. Importing it imports neither TensorFlow nor OpenCV.

batch, bench, compare, evaluate, explain, export,
gallery, health, layers, reload, serve, token,
watch            one module for each command
explain_output, evaluation, evaluation_report       parts of explain and evaluate
request_options  options of how images are explained
connection       options to connect to a server: TLS and token
model_access     options to choose a model: on a server, or in this process
local            explains in this process, with the interface of the client
common           classes, probabilities, errors for scripts
errors           errors for people
pictures         image files, masks, and matplotlib figures
progress         progress bars, and progress lines for logs
"""

import os
from difflib import get_close_matches
from importlib import import_module

import click

from gradcam_server import __version__

_COMMANDS = (
    *("batch", "bench", "compare", "evaluate", "explain", "export"),
    *("gallery", "health", "layers", "reload", "serve", "token", "watch"),
)


class _Commands(click.Group):
    """Imports a command, and gRPC with it, only when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002 - click's signature
        cmd_name: str,
    ) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        if cmd_name != "serve":
            # gRPC reads this variable at its import; its log repeats the text of errors.
            os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        return getattr(import_module(f"{__name__}.{cmd_name}"), cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in _COMMANDS and not name.startswith("-"):
            close = get_close_matches(name, _COMMANDS)
            meant = f"did you mean {' or '.join(close)}?" if close else ", ".join(_COMMANDS)
            raise click.UsageError(f"there is no command {name!r}; {meant}", ctx)
        return super().resolve_command(ctx, args)


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="gradcam")
def main() -> None:
    """Predict what is in an image, and show where the model looked.

    \b
    gradcam serve                            start a server
    gradcam explain cat.jpg -o out.jpg       explain in this process
    gradcam explain *.jpg --server HOST:PORT explain on a server
    gradcam layers                           list the layers to explain
    gradcam compare cat.jpg -o picture.png   methods or layers side by side
    gradcam evaluate *.jpg                   measure which method is faithful
    gradcam export -o FOLDER                 compile once, serve without TensorFlow
    gradcam batch photos/ out/               explain many images, into Parquet files
    gradcam gallery out/                     a page of the most unusual of them
    gradcam watch rtsp://... -o out.mp4      explain cameras, videos and folders
    gradcam bench serving                    measure a server under load
    """  # noqa: D301 - click reads the character \b
    # TensorFlow reads this variable at its import: errors only, unless the user sets it.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
