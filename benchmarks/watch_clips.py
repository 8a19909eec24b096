"""Measures how answers of ``gradcam watch`` follow a scene, on clips whose motion is known.

A virtual camera looks at a photograph: it pans, zooms, stands still in noise, cuts to another
photograph, or fades slowly to it. All frames are explained once, by the trained EfficientNet-Lite0
in this process; what is kept of them over time is then replayed.

- The pointing game over time: the share of frames in which the maximum of the heat lies in the
  object's box, which moves with the camera.
- Flicker: the mean absolute difference of the maps of two frames, each 0 to 1, the earlier one
  moved by the known motion.
- Reuse: its true error, from the answers for all frames, beside the intervals of audits by many
  seeds; and how many frames a fixed frame skip computes for the same error.
- Rest: how many grey levels the noise of a camera alone changes a frame by, as reuse measures it. A
  threshold below that computes every frame.

Usage: python benchmarks/watch_clips.py [--seconds N] [--seeds N] [--output FILE]
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from gradcam_client import ImageExplanation, Raw
from gradcam_server.cli.local import LocalClient
from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.options import Compiler
from gradcam_server.watch.frames import Frame, Pixels
from gradcam_server.watch.stream_state import Choice
from gradcam_server.watch.temporal.audit import Audit, map_correlation
from gradcam_server.watch.temporal.cuts import is_cut
from gradcam_server.watch.temporal.motion import MotionEstimator, small_gray
from gradcam_server.watch.temporal.reuse import ReusePolicy, change, small_picture
from gradcam_server.watch.temporal.smoothing import MapSmoother
from gradcam_server.watch.temporal.steady import SteadyStream

IMAGES = Path(__file__).resolve().parent.parent / "examples" / "images"
RATE = 15.0
WIDTH, HEIGHT = 256, 192
CAMERA_NOISE = 3.0
TIME_CONSTANT_S = 0.5
THRESHOLDS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 16.0)
MAX_SKIP = 60
# Of cameras in good, moderate and little light, in grey levels.
NOISES = (3.0, 6.0, 12.0)
SIZES = ((256, 192), (640, 480), (1920, 1080))
STILL_FRAMES = 20
AUDIT_SHARES = (0.05, 0.2)
KINDS = ("pan", "zoom", "noise", "fade", "cut")
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Scene:
    """A photograph, the class to explain, and the box of its object: left, top, right, bottom."""

    name: str
    target: int
    box: Box

    @property
    def pixels(self) -> Pixels:
        image = cv2.imread(str(IMAGES / f"{self.name}.jpg"))
        assert image is not None
        pixels: Pixels = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        return pixels


SCENES = (
    Scene("cat", 285, (35, 0, 390, 300)),
    Scene("espresso", 967, (75, 15, 480, 390)),
    Scene("astronaut", 812, (350, 0, 475, 290)),  # space shuttle
)


@dataclass(frozen=True, eq=False)
class View:
    """A frame: the matrix (2, 3) from photograph to frame, and the object's box in the frame."""

    image: Pixels
    scene: str
    matrix: NDArray[np.float64]
    box: Box


@dataclass(frozen=True, eq=False)
class Clip:
    """The frames of a clip, and the answers for all of them."""

    kind: str
    target: int
    views: Sequence[View]
    answers: Sequence[ImageExplanation]

    def frames(self) -> Iterator[Frame]:
        for number, view in enumerate(self.views):
            yield Frame("clip", number, number / RATE, number / RATE, view.image, is_live=False)


def look(scene: Scene, pixels: Pixels, x: float, y: float, zoom: float) -> View:
    """Looks at a point of a photograph, which fills the frame's width at zoom 1."""
    height, width = pixels.shape[:2]
    scale = zoom * max(WIDTH / width, HEIGHT / height)
    matrix = np.array(
        [[scale, 0, WIDTH / 2 - scale * x * width], [0, scale, HEIGHT / 2 - scale * y * height]]
    )
    image = cv2.warpAffine(
        pixels, matrix, (WIDTH, HEIGHT), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REFLECT
    )
    (left, top), (right, bottom) = (
        matrix @ [*corner, 1] for corner in (scene.box[:2], scene.box[2:])
    )
    return View(image, scene.name, matrix, (left, top, right, bottom))


def _blend(one: View, other: View, share: float) -> View:
    image = cv2.addWeighted(one.image, 1 - share, other.image, share, 0)
    shown = one if share < 0.5 else other
    return View(image, one.scene, shown.matrix, shown.box)


def film(kind: str, scene: Scene, other: Scene, count: int, seed: int) -> list[View]:
    """Films a clip of one kind; each frame has the camera's noise."""
    random = np.random.default_rng(seed)
    pixels, next_pixels = scene.pixels, other.pixels
    center_x = (scene.box[0] + scene.box[2]) / 2 / pixels.shape[1]
    center_y = (scene.box[1] + scene.box[3]) / 2 / pixels.shape[0]
    views: list[View] = []
    noise = CAMERA_NOISE
    for number in range(count):
        turn = 2 * np.pi * number / (6 * RATE)
        along = number / max(1, count - 1)
        here = look(scene, pixels, center_x, center_y, 1.3)
        there = look(other, next_pixels, 0.5, 0.5, 1.3)
        match kind:
            case "pan":
                x, y = center_x + 0.15 * np.sin(turn), center_y + 0.08 * np.sin(2 * turn)
                view = look(scene, pixels, x, y, 1.5)
            case "zoom":
                zoom = 1.5 - 0.5 * np.cos(turn)
                view = look(scene, pixels, center_x, center_y, zoom)
            case "noise":
                view, noise = here, 20.0
            case "fade":
                view = _blend(here, there, along)
            case _:
                view = here if along < 0.5 else there
        noisy = view.image + random.normal(0, noise, view.image.shape)
        image = np.clip(noisy, 0, 255).astype(np.uint8)
        views.append(View(image, view.scene, view.matrix, view.box))
    return views


def explained_clips(seconds: float) -> Iterator[Clip]:
    """Films and explains all clips; each photograph cuts and fades to the next one."""
    config = ServeConfig(
        model=("efficientnet-lite0",), batch_sizes=(1, 8), compiler=Compiler.TENSORFLOW
    )
    with LocalClient(config) as client:
        for place, scene in enumerate(SCENES):
            other = SCENES[(place + 1) % len(SCENES)]
            for kind in KINDS:
                views = film(kind, scene, other, round(seconds * RATE), seed=place)
                outcomes = client.explain_stream(
                    (view.image for view in views), classes=[scene.target], heatmaps=[Raw()]
                )
                yield Clip(kind, scene.target, views, [one.unwrap() for one in outcomes])


def frame_by_frame(clip: Clip) -> list[NDArray[np.float32]]:
    """Returns each frame's own map, divided by its own maximum."""
    return [answer.explanations[0].on_image(HEIGHT, WIDTH) for answer in clip.answers]


def steadied(clip: Clip, *, with_motion: bool = True) -> list[NDArray[np.float32]]:
    """Returns the smoothed maps; without motion they stay where they are, in each scene."""
    if with_motion:
        stream = SteadyStream([clip.target], smoother=MapSmoother(TIME_CONSTANT_S))
        pairs = zip(clip.frames(), clip.answers, strict=True)
        return [_enlarge(stream.shown(frame, answer).heat) for frame, answer in pairs]
    maps: list[NDArray[np.float32]] = []
    mean: NDArray[np.float32] | None = None
    weight = 1 - np.exp(-1 / RATE / TIME_CONSTANT_S)
    for answer in clip.answers:
        raw = answer.explanations[0].heatmap
        mean = raw if mean is None else mean + weight * (raw - mean)
        maps.append(_enlarge(mean / max(float(mean.max()), 1e-9)))
    return maps


def _enlarge(heat: NDArray[np.float32] | None) -> NDArray[np.float32]:
    assert heat is not None
    enlarged: NDArray[np.float32] = cv2.resize(heat, (WIDTH, HEIGHT))
    return enlarged


def has_object(clip: Clip, number: int) -> bool:
    """Whether a frame shows the object of the class: not after the cut or the half of a fade."""
    return clip.kind not in {"cut", "fade"} or number < len(clip.views) / 2


def pointing(clip: Clip, maps: Sequence[NDArray[np.float32]]) -> float:
    """Returns the share of frames with the maximum of the heat in the object's box."""
    hits = []
    for number, (view, heat) in enumerate(zip(clip.views, maps, strict=True)):
        if has_object(clip, number):
            y, x = np.unravel_index(int(heat.argmax()), heat.shape)
            left, top, right, bottom = view.box
            hits.append(left <= x <= right and top <= y <= bottom)
    return float(np.mean(hits))


def flicker(clip: Clip, maps: Sequence[NDArray[np.float32]]) -> float:
    """Returns the mean absolute difference of maps, moved by the known motion."""
    differences = []
    for number in range(1, len(maps)):
        before, now = clip.views[number - 1], clip.views[number]
        if not (has_object(clip, number) and has_object(clip, number - 1)):
            continue
        motion = _square(now.matrix) @ np.linalg.inv(_square(before.matrix))
        moved = cv2.warpAffine(
            maps[number - 1], motion[:2], (WIDTH, HEIGHT), borderMode=cv2.BORDER_CONSTANT
        )
        ones = np.ones((HEIGHT, WIDTH), np.float32)
        seen = cv2.warpAffine(ones, motion[:2], (WIDTH, HEIGHT)) > 0.99
        differences.append(float(np.abs(maps[number] - moved)[seen].mean()))
    return float(np.mean(differences))


def _square(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.vstack([matrix, [0, 0, 1]])


def cuts(clip: Clip) -> list[int]:
    """Returns the numbers of the frames that begin a scene, as found."""
    estimator = MotionEstimator()
    motions = [estimator.update(small_gray(view.image)) for view in clip.views]
    return [n for n, motion in enumerate(motions) if motion is not None and is_cut(motion)]


@dataclass(frozen=True, eq=False)
class Errors:
    """What reuse of an earlier answer would have got wrong, of some frames."""

    missed: NDArray[np.bool_]
    loss: NDArray[np.float64]


def errors(clips: Sequence[Clip], kept: Sequence[NDArray[np.int64]]) -> Errors:
    """Compares the answers for all frames with the kept ones.

    Args:
        clips: The clips.
        kept: For each clip, of which frame each frame's answer is.
    """
    missed: list[bool] = []
    loss: list[float] = []
    for clip, sources in zip(clips, kept, strict=True):
        for answer, source in zip(clip.answers, sources, strict=True):
            reused = clip.answers[source]
            missed.append(reused.predictions[0].index != answer.predictions[0].index)
            correlation = map_correlation(
                reused.explanations[0].heatmap, answer.explanations[0].heatmap
            )
            loss.append(1 - min(1.0, max(0.0, correlation)))
    return Errors(np.array(missed), np.array(loss))


def replay(clip: Clip, threshold: float, share: float) -> NDArray[np.int64]:
    """Runs reuse over a clip; returns of which frame each frame's answer is."""
    policy = ReusePolicy(threshold, share, seed=0)
    kept: list[int] = []
    last = 0
    for frame, answer in zip(_small(clip), clip.answers, strict=True):
        choice = policy.decide(frame).choice
        if choice is not Choice.REUSE:
            policy.learn(frame, answer)
        last = frame.number if choice is Choice.COMPUTE else last
        kept.append(last)
    return np.array(kept)


def _small(clip: Clip) -> Iterator[Frame]:
    """Yields the frames in the size in which reuse compares them: the same decisions, sooner."""
    for frame in clip.frames():
        image = small_picture(frame.image).astype(np.uint8)
        yield Frame("clip", frame.number, frame.time_s, frame.read_at, image, is_live=False)


def sampled(found: Errors, is_reused: NDArray[np.bool_], share: float, seed: int) -> Audit:
    """Returns the audit of frames by another seed: no decision depends on it."""
    audit = Audit(share)
    coins = np.random.default_rng(seed).random(int(is_reused.sum())) < share
    audit.asked, audit.reused = int(coins.sum()), int((~coins).sum())
    for missed, loss in zip(
        found.missed[is_reused][coins], found.loss[is_reused][coins], strict=True
    ):
        audit.add(is_missed=bool(missed), correlation=1 - float(loss))
    return audit


def coverage(
    found: Errors, is_reused: NDArray[np.bool_], share: float, seeds: int
) -> dict[str, Any]:
    """Returns in which share of audits the true errors lie within the reported intervals."""
    missed = float(found.missed[is_reused].mean())
    correlation = 1 - float(found.loss[is_reused].mean())
    audits = [sampled(found, is_reused, share, seed) for seed in range(seeds)]
    shares, maps = [one.missed_share for one in audits], [one.correlation for one in audits]
    return {
        "audit_share": share,
        "reused_frames": int(is_reused.sum()),
        "true_missed_share": missed,
        "true_correlation": correlation,
        "missed_share_covered": float(np.mean([one.low <= missed <= one.high for one in shares])),
        "correlation_covered": float(
            np.mean([one.low - 1e-12 <= correlation <= one.high + 1e-12 for one in maps])
        ),
        "median_width_missed_share": float(np.median([one.high - one.low for one in shares])),
        "median_width_correlation": float(np.median([one.high - one.low for one in maps])),
    }


def compare_reuse(
    clips: Sequence[Clip], threshold: float, seeds: int, skips: dict[int, float]
) -> dict[str, Any]:
    """Measures reuse at a threshold over clips: its error, its audits, and a frame skip."""
    runs = [replay(clip, threshold, 0.0) for clip in clips]
    for clip, run in zip(clips, runs, strict=True):
        # So the coins of many seeds can be thrown without running reuse for each.
        assert np.array_equal(run, replay(clip, threshold, 0.5)), "an audit changed a decision"
    found = errors(clips, runs)
    is_reused = np.concatenate([run != np.arange(len(run)) for run in runs])
    result: dict[str, Any] = {
        "threshold": threshold,
        "frames": len(is_reused),
        "computed": int((~is_reused).sum()),
        "error_of_all_frames": {
            "missed_share": float(found.missed.mean()),
            "correlation": 1 - float(found.loss.mean()),
        },
        "skip_with_no_more_error": _best_skip(clips, float(found.loss.mean()), skips),
    }
    if is_reused.any():
        result["audits"] = [coverage(found, is_reused, share, seeds) for share in AUDIT_SHARES]
    return result


def compare_thresholds(clips: Sequence[Clip], seeds: int) -> list[dict[str, Any]]:
    """Measures reuse at several thresholds."""
    skips = skip_losses(clips)
    return [compare_reuse(clips, threshold, seeds, skips) for threshold in THRESHOLDS]


def skip_losses(clips: Sequence[Clip]) -> dict[int, float]:
    """Returns the mean loss of maps if every second, third... frame is computed, by the skip."""
    return {
        skip: float(
            errors(clips, [np.arange(len(clip.views)) // skip * skip for clip in clips]).loss.mean()
        )
        for skip in range(1, MAX_SKIP + 1)
    }


def _best_skip(clips: Sequence[Clip], allowed: float, skips: dict[int, float]) -> dict[str, int]:
    """Returns the longest skip whose maps are no worse, and how many frames it computes."""
    best = max((skip for skip, loss in skips.items() if loss <= allowed), default=1)
    return {"skip": best, "computed": sum(-(-len(clip.views) // best) for clip in clips)}


def changes_at_rest() -> list[dict[str, Any]]:
    """Returns the highest change between frames of a camera that stands still, by its noise."""
    random = np.random.default_rng(0)
    rows = []
    for size in SIZES:
        stills = [cv2.resize(scene.pixels, size).astype(np.float32) for scene in SCENES]
        for noise in NOISES:
            highest = []
            for still in stills:
                small = [
                    small_picture(_with_noise(still, noise, random)) for _ in range(STILL_FRAMES)
                ]
                highest.append(max(change(small[0], one) for one in small[1:]))
            rows.append({"size": list(size), "noise": noise, "change": max(highest)})
    return rows


def _with_noise(image: NDArray[np.float32], noise: float, random: np.random.Generator) -> Pixels:
    noisy = image + np.float32(noise) * random.standard_normal(image.shape, np.float32)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def steadiness(clip: Clip) -> dict[str, Any]:
    """Measures how the heat of a clip follows its object."""
    ways = {
        "frame_by_frame": frame_by_frame(clip),
        "smoothed": steadied(clip),
        "smoothed_without_motion": steadied(clip, with_motion=False),
    }
    return {
        "kind": clip.kind,
        "scene": clip.views[0].scene,
        "pointing": {way: pointing(clip, maps) for way, maps in ways.items()},
        "flicker": {way: flicker(clip, maps) for way, maps in ways.items()},
        "cuts_found": cuts(clip),
        "cuts": [len(clip.views) // 2] if clip.kind == "cut" else [],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each clip (default 20)")
    parser.add_argument("--seeds", type=int, default=400, help="of the audits (default 400)")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    clips = list(explained_clips(arguments.seconds))
    groups = {kind: [clip for clip in clips if clip.kind == kind] for kind in KINDS}
    results = {
        "seconds": arguments.seconds,
        "frames_per_second": RATE,
        "time_constant_s": TIME_CONSTANT_S,
        "seeds": arguments.seeds,
        "changes_at_rest": changes_at_rest(),
        "clips": [steadiness(clip) for clip in clips],
        "reuse": {
            name: compare_thresholds(group, arguments.seeds)
            for name, group in {**groups, "all": clips}.items()
        },
    }
    text = json.dumps(results, indent=2)
    print(text)
    if arguments.output is not None:
        arguments.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
