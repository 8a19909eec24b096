"""Measures the time that decoding JPEGs at a reduced scale saves, and how much it changes answers.

Photographs are enlarged to some megapixels and encoded again. Full and reduced decoding, each with
the resize to the model's input, are timed in turns; each round gives a ratio. The answers of the
trained efficientnet-lite0 are compared image by image.

Usage: python benchmarks/decode.py [FOLDER] [--rounds N] [--output FILE]
"""

import argparse
import io
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

from gradcam_server.config.models import model_specs
from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.graph_io import GraphItem, GraphKey, GraphOutput, GraphTarget, by_rank
from gradcam_server.domain.options import Compiler
from gradcam_server.domain.requests import Method, ResizeMode, ScoreType
from gradcam_server.engine.sources.base import open_source
from gradcam_server.exports.agreement import correlation
from gradcam_server.graphs.executable import CompilationCounter, CompiledGraph
from gradcam_server.images.decode import decode_image, decode_reduced
from gradcam_server.images.geometry import fit, shrinkage

EXAMPLES = Path(__file__).resolve().parent.parent / "examples" / "images"
MEGAPIXELS = (0.3, 1.0, 2.0, 4.0, 8.0, 12.0)
SIZE = (224, 224)
MAX_PIXELS = 10**8

Explain = Callable[[NDArray[np.uint8], int], GraphOutput]


def read_photographs(folder: Path) -> dict[str, Image.Image]:
    """Reads the JPEGs of a folder."""
    return {path.name: Image.open(path).convert("RGB") for path in sorted(folder.glob("*.jpg"))}


def enlarged(photograph: Image.Image, megapixels: float) -> bytes:
    """Encodes a photograph as a JPEG of about that many megapixels."""
    scale = (megapixels * 1e6 / (photograph.width * photograph.height)) ** 0.5
    size = round(photograph.width * scale), round(photograph.height * scale)
    buffer = io.BytesIO()
    photograph.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def whole(data: bytes) -> NDArray[np.uint8]:
    """Decodes all pixels, and resizes."""
    return fit(decode_image(data, MAX_PIXELS), SIZE, ResizeMode.STRETCH)[0]


def reduced(data: bytes) -> NDArray[np.uint8]:
    """Decodes at a reduced scale if that is enough, and resizes."""
    pixels, size = decode_reduced(
        data, MAX_PIXELS, lambda size: shrinkage(size, SIZE, ResizeMode.STRETCH)
    )
    return fit(pixels, SIZE, ResizeMode.STRETCH, size)[0]


def seconds(work: Callable[[bytes], object], data: bytes) -> float:
    started = perf_counter()
    work(data)
    return perf_counter() - started


def time_ratios(files: list[bytes], rounds: int) -> list[float]:
    """Returns the time of reduced over whole decoding, for each round and file."""
    return [seconds(reduced, data) / seconds(whole, data) for _ in range(rounds) for data in files]


def open_model() -> Explain:
    """Returns a function that predicts an image and explains one of its classes."""
    config = ServeConfig(model=("efficientnet-lite0",), compiler=Compiler.TENSORFLOW)
    source = open_source(model_specs(config)[0], config, CompilationCounter())
    layers = (source.served.default_layer,)
    key = GraphKey(source.served.id, layers, Method.GRAD_CAM, ScoreType.LOGIT, 1)
    graph: CompiledGraph = source.compile(key, (1,))
    return lambda image, index: graph.run([GraphItem(image, [GraphTarget(index)])], 1)[0]


def compare(files: list[bytes], explain: Explain) -> dict[str, Any]:
    """Compares the answers for both images; the maps are of the best class by whole decoding."""
    same, differences, correlations, pixels = 0, [], [], []
    for data in files:
        inputs = whole(data), reduced(data)
        expected = explain(inputs[0], by_rank(0))
        actual = explain(inputs[1], int(expected.classes[0]))
        same += int(expected.logits.argmax() == actual.logits.argmax())
        differences.append(float(np.abs(expected.logits - actual.logits).max()))
        correlations.append(correlation(expected.maps[0][0], actual.maps[0][0]))
        pixels.append(float(np.abs(inputs[0].astype(int) - inputs[1]).mean()))
    return {
        "top1_agreement": same / len(files),
        "largest_logit_difference": round(max(differences), 4),
        "map_correlation_mean": round(float(np.mean(correlations)), 5),
        "map_correlation_worst": round(min(correlations), 5),
        "mean_pixel_difference": round(float(np.mean(pixels)), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=EXAMPLES)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    photographs = read_photographs(arguments.folder)
    explain = open_model()
    results = []
    for megapixels in track(MEGAPIXELS):
        files = [enlarged(photograph, megapixels) for photograph in photographs.values()]
        ratios = time_ratios(files, arguments.rounds)
        results.append(
            {
                "megapixels": megapixels,
                "time_ratio_quartiles": np.percentile(ratios, [25, 50, 75]).round(3).tolist(),
                **compare(files, explain),
            }
        )
    report = {
        "model": "efficientnet-lite0, trained",
        "photographs": len(photographs),
        "rounds": arguments.rounds,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {"opencv": cv2.__version__},
        "results": results,
    }
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
