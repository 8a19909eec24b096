"""Options of how images are explained, the same for ``gradcam explain`` and ``gradcam watch``."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import click

from gradcam_client.requests import COLORMAPS, LAYER_FUSIONS, METHODS, RESIZE_MODES, SCORE_TYPES

_F = TypeVar("_F", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        *("--layer", "layers"),
        multiple=True,
        help="Explain this layer (see gradcam layers). Repeat for several.",
    ),
    click.option(
        "--fusion",
        type=click.Choice(list(LAYER_FUSIONS)),
        default="none",
        help="Fuse the maps of several layers into one.",
    ),
    click.option(
        "--method",
        type=click.Choice(list(METHODS)),
        default="gradcam",
        help="Explain by this method.",
    ),
    click.option(
        "--score",
        type=click.Choice(list(SCORE_TYPES)),
        default="logit",
        help="Explain the class's logit, or its probability (as the Keras tutorial does).",
    ),
    click.option(
        "--passes",
        type=click.IntRange(min=1),
        help="Channels of scorecam, or steps of integrated-gradients.  [default: 64, 32]",
    ),
    click.option(
        "--smooth",
        type=click.IntRange(min=1),
        help="SmoothGrad: the mean over this many noisy copies, with any other method.",
    ),
    click.option(
        "--resize",
        type=click.Choice(list(RESIZE_MODES)),
        default="stretch",
        help="How the image is resized to the model's input size.",
    ),
    click.option(
        "--colormap",
        type=click.Choice(list(COLORMAPS)),
        default="jet",
        help="Colours of the overlay.",
    ),
    click.option(
        "--alpha",
        type=click.FloatRange(0, 1),
        default=0.4,
        help="Weight of the colours over the image.",
    ),
)


def request_options(command: _F) -> _F:
    """Adds the options of the method, its layers and its score, and those of the overlay."""
    decorated: Any = command
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return cast("_F", decorated)
