"""The ``gradcam`` command. Importing it imports neither TensorFlow nor OpenCV."""

import os

import click

from gradcam_server import __version__
from gradcam_server.cli.compare import compare
from gradcam_server.cli.evaluate import evaluate
from gradcam_server.cli.explain import explain
from gradcam_server.cli.health import health
from gradcam_server.cli.layers import layers
from gradcam_server.cli.reload import reload
from gradcam_server.cli.serve import serve
from gradcam_server.cli.token import token


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="gradcam")
def main() -> None:
    """Predict what is in an image, and see where the model looked.

    \b
    gradcam serve                            start a server
    gradcam explain cat.jpg -o out.jpg       explain in this process
    gradcam explain *.jpg --server HOST:PORT explain on a server
    gradcam layers                           find the layer to explain
    gradcam compare cat.jpg -o picture.png   methods or layers side by side
    gradcam evaluate *.jpg                   measure which method is faithful
    """  # noqa: D301 - click reads the character \b
    # TensorFlow reads it when it is imported: errors only, unless the user asks for more.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


for command in (serve, explain, layers, compare, evaluate, health, reload, token):
    main.add_command(command)
