"""Measures the faithfulness of explanation methods on images: ``gradcam evaluate``."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradcam_client import Explanation, GradCamError, ImageArray, SmoothGrad
from gradcam_server.cli.common import ALL_CLASSES, class_of, error_as_json, probabilities_of
from gradcam_server.cli.model_access import ModelAccess, say_compiled
from gradcam_server.cli.pictures import load_image, load_mask
from gradcam_server.methods import faithfulness

# Larger than the input of the built-in models, and small enough to send many times.
MAX_SIDE = 512
# The prefix of a method's name for its SmoothGrad.
SMOOTH = "smooth-"


@dataclass(frozen=True)
class Protocol:
    """The protocol of an evaluation.

    Attributes:
        steps: Steps of a curve: portions of pixels.
        deletion_baseline: Replacement of deleted pixels: a key of ``faithfulness.BASELINES``.
        insertion_baseline: The image before any pixel is inserted: another such key.
    """

    steps: int
    deletion_baseline: str
    insertion_baseline: str

    @property
    def image_count(self) -> int:
        """Number of images for one heat map: those to predict, and the explained image."""
        return 2 * (self.steps + 1) + 2

    def images(
        self, image: NDArray[np.uint8], heatmap: NDArray[np.float32]
    ) -> Iterator[NDArray[np.uint8]]:
        """Yields the images of the deletion curve, of the insertion curve, and the dimmed image."""
        baselines = faithfulness.BASELINES
        yield from faithfulness.deletion_images(
            image, heatmap, self.steps, baselines[self.deletion_baseline]
        )
        yield from faithfulness.insertion_images(
            image, heatmap, self.steps, baselines[self.insertion_baseline]
        )
        yield faithfulness.explanation_map(image, heatmap)

    def scores(self, probabilities: NDArray[np.float64]) -> dict[str, Any]:
        """Returns curves and metrics from the class's probability on each of ``images``."""
        deletion, insertion = probabilities[: self.steps + 1], probabilities[self.steps + 1 : -1]
        full, explained = deletion[0], probabilities[-1]
        return {
            "deletion_auc": faithfulness.auc(deletion),
            "insertion_auc": faithfulness.auc(insertion),
            "average_drop_percent": faithfulness.average_drop(full, explained),
            "increase_percent": faithfulness.increase_in_confidence(full, explained),
            "deletion": deletion.tolist(),
            "insertion": insertion.tolist(),
        }


class Evaluator:
    """Evaluates heat maps by the probabilities of perturbed images.

    Args:
        client: A ``Client`` or ``LocalClient``.
        access: The options that opened it.
        layer: The layer to explain; empty is the default.
        target: The class to explain; None is each image's best.
        protocol: The protocol.
        smooth: The SmoothGrad of methods whose names begin with ``SMOOTH``.
    """

    def __init__(
        self,
        client: Any,
        access: ModelAccess,
        layer: str,
        target: str | None,
        protocol: Protocol,
        smooth: SmoothGrad | None,
    ) -> None:
        self._client, self._access, self._layer = client, access, layer
        self._classes = [] if target is None else [class_of(target)]
        self._protocol, self._smooth = protocol, smooth

    def evaluate(
        self,
        path: Path,
        methods: Sequence[str],
        masks: Path | None,
        advance: Callable[[], None],
    ) -> dict[str, Any]:
        """Returns the record of an image: values or an error for each method."""
        record: dict[str, Any] = {"path": str(path)}
        try:
            image = load_image(path, MAX_SIDE)
            mask_path = masks / f"{path.stem}.png" if masks else None
            mask = None
            if mask_path and mask_path.exists():
                mask = load_mask(mask_path, path, image.shape)
        except (OSError, ValueError) as error:
            for _ in methods:
                advance()
            return record | {"error": error_as_json(error)}
        record |= {"height": image.shape[0], "width": image.shape[1], "mask": None, "methods": {}}
        if mask is not None:
            record["mask"] = str(mask_path)
        for method in methods:
            try:
                values = self._evaluate_method(image, mask, method, record)
            except (GradCamError, ValueError) as error:
                values = {"error": error_as_json(error)}
            record["methods"][method] = values
            advance()
        return record

    def _evaluate_method(
        self,
        image: NDArray[np.uint8],
        mask: NDArray[np.bool_] | None,
        method: str,
        record: dict[str, Any],
    ) -> dict[str, Any]:
        began = time.monotonic()
        (outcome,) = self._client.explain_stream(
            [image],
            model=self._access.requested_model,
            classes=self._classes,
            layers=self._layer,
            method=method.removeprefix(SMOOTH),
            smooth=self._smooth if method.startswith(SMOOTH) else None,
            heatmaps=[ImageArray()],
        )
        result = outcome.unwrap()
        say_compiled(self._access, result)
        explanation: Explanation = result.explanations[0]
        heatmap = explanation.heatmaps[0].array
        probabilities = self._probabilities(
            self._protocol.images(image, heatmap), explanation.index
        )
        record["model"] = result.model
        record["class"] = {
            "index": explanation.index,
            "name": explanation.name,
            "probability": probabilities[0],
        }
        values = {
            "layer": explanation.layer,
            "degenerate": explanation.degenerate,
            **self._protocol.scores(probabilities),
        }
        if mask is not None:
            values["pointing_percent"] = 100.0 * faithfulness.points_at(heatmap, mask)
            values["energy_inside"] = faithfulness.energy_inside(heatmap, mask)
        values["explain_s"] = (result.stats.compute_us + result.stats.render_us) / 1e6
        values["evaluate_s"] = time.monotonic() - began
        return values

    def _probabilities(
        self, images: Iterable[NDArray[np.uint8]], index: int
    ) -> NDArray[np.float64]:
        outcomes = self._client.explain_stream(
            images, model=self._access.requested_model, top_k=0, predictions=ALL_CLASSES
        )
        return np.array([probabilities_of(outcome.unwrap())[index] for outcome in outcomes])


def errors_of(record: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields (method, error) of a record; the method is empty if the image failed."""
    if "error" in record:
        yield "", record["error"]
    for method, values in record.get("methods", {}).items():
        if "error" in values:
            yield method, values["error"]
