"""The way of one image, with an engine that answers at once."""

import asyncio
import dataclasses
import io
import threading
import weakref
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.graph_io import GraphKey, GraphOutput
from gradcam_server.domain.layers import Extent, LayerInfo
from gradcam_server.domain.requests import (
    ExplainRequest,
    HeatmapForm,
    HeatmapFormat,
    LayerFusion,
    Method,
    RawImage,
    ResizeMode,
    SmoothGrad,
    TopK,
)
from gradcam_server.domain.schedule import Answer
from gradcam_server.errors import DeadlineError, InvalidRequestError, QueueFullError
from gradcam_server.images.decode import decode_image
from gradcam_server.pipeline import pipeline as module
from gradcam_server.pipeline import translation
from gradcam_server.pipeline.ledger import Ledger
from gradcam_server.pipeline.pipeline import Pipeline
from support.instant import INPUT_SIZE, InstantBackend


class CompilingBackend(InstantBackend):
    """Every image waited for its graph: 5 s for uint8 images, 7 s for perturbed ones."""

    async def compute(self, key: GraphKey, *arguments: Any) -> Answer[GraphOutput]:
        answer = await super().compute(key, *arguments)
        return answer._replace(compile_us=7_000_000 if key.perturbed else 5_000_000)


RAW, GRAY = HeatmapForm(), HeatmapForm(HeatmapFormat.GRAY_PNG)


@pytest.fixture
async def backend() -> InstantBackend:
    """Keeps its items."""
    return InstantBackend(keep=True)


@pytest.fixture
async def pipeline(backend: InstantBackend) -> AsyncIterator[Pipeline]:
    """Decodes at reduced scales."""
    pipeline = Pipeline(ServeConfig(reduced_decode=True), backend, lambda *_: None)
    yield pipeline
    await pipeline.close()


def jpeg(images: object, size: tuple[int, int], orientation: int = 1) -> bytes:
    photo = Image.open(f"{images}/cat.jpg").convert("RGB").resize(size)
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    photo.save(buffer, "JPEG", exif=exif, quality=95)
    return buffer.getvalue()


def asked(data: bytes, forms: Sequence[HeatmapForm], k: int = 1, **options: object):  # type: ignore[no-untyped-def]
    return ExplainRequest(data, targets=TopK(k), forms=tuple(forms), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", list(ResizeMode))
@pytest.mark.parametrize("orientation", [1, 6])
async def test_a_reduced_decode_shows_in_no_field(
    pipeline: Pipeline,
    backend: InstantBackend,
    images: object,
    mode: ResizeMode,
    orientation: int,
) -> None:
    """The reported size is the original's, and the model sees nearly the same pixels."""
    data = jpeg(images, (1602, 1201), orientation)
    raw = await pipeline.explain(asked(data, [RAW], resize_mode=mode))
    gray = await pipeline.explain(asked(data, [RAW, GRAY], resize_mode=mode))
    size = (1201, 1602) if orientation == 1 else (1602, 1201)
    for answer in (raw, gray):
        assert (answer.image_height, answer.image_width) == size
    (heatmap,) = raw.explanations[0].heatmaps
    assert heatmap == gray.explanations[0].heatmaps[0]
    reduced, whole = (item.image.astype(int) for item in backend.items)
    assert 0 < np.abs(reduced - whole).mean() < 3


@pytest.mark.parametrize(
    ("forms", "k", "reduced"),
    [([RAW], 1, True), ([GRAY], 1, False), ([RAW, GRAY], 2, False), ([GRAY], 0, True)],
)
async def test_only_drawn_maps_need_the_whole_image(
    pipeline: Pipeline,
    backend: InstantBackend,
    images: object,
    monkeypatch: pytest.MonkeyPatch,
    forms: list[HeatmapForm],
    k: int,
    reduced: bool,
) -> None:
    """A map of the image's size is made of the image's pixels; without a target there is none."""
    calls: list[str] = []

    for name in ("decode_image", "decode_reduced"):
        work = getattr(module, name)

        def spy(*args: Any, name: str = name, work: Any = work) -> Any:
            calls.append(name)
            return work(*args)

        monkeypatch.setattr(module, name, spy)
    await pipeline.explain(asked(jpeg(images, (1600, 1200)), forms, k))
    assert calls == ["decode_reduced" if reduced else "decode_image"]


async def test_images_are_decoded_whole_unless_asked_otherwise(
    backend: InstantBackend, images: object
) -> None:
    """By default an answer does not depend on the forms that are asked for."""
    pipeline = Pipeline(ServeConfig(), backend, lambda *_: None)
    data = jpeg(images, (1600, 1200))
    for forms in ([RAW], [GRAY]):
        await pipeline.explain(asked(data, forms))
    await pipeline.close()
    np.testing.assert_array_equal(backend.items[0].image, backend.items[1].image)


@pytest.mark.parametrize(
    ("size", "form", "is_quick"),
    [(INPUT_SIZE, RAW, True), ((300, 400), RAW, False), (INPUT_SIZE, GRAY, False)],
)
async def test_quick_work_waits_for_no_thread(
    pipeline: Pipeline,
    monkeypatch: pytest.MonkeyPatch,
    size: tuple[int, int],
    form: HeatmapForm,
    is_quick: bool,
) -> None:
    """Pixels that fit and raw maps go on while all threads are busy; other work waits."""
    gate, threads = threading.Event(), ServeConfig().worker_threads + 1
    load = module.load

    def load_late(*arguments: Any, **options: Any) -> Any:
        assert threading.current_thread() is threading.main_thread() or gate.wait(30)
        return load(*arguments, **options)

    monkeypatch.setattr(module, "load", load_late)
    other = ExplainRequest(RawImage(bytes(3), 1, 1))
    busy = [asyncio.create_task(pipeline.explain(other)) for _ in range(threads)]
    await asyncio.sleep(0.01)
    assert pipeline.thread_counts["busy"] == threads
    image = RawImage(bytes(3 * size[0] * size[1]), *size)
    asked = ExplainRequest(image, forms=(form,))
    answer = asyncio.create_task(pipeline.explain(asked))
    await asyncio.sleep(0.1)
    assert answer.done() == is_quick
    gate.set()
    assert (await answer).image_height == size[0]
    await asyncio.gather(*busy)


@asynccontextmanager
async def pipeline_of(*layers: LayerInfo) -> AsyncIterator[Pipeline]:
    backend = InstantBackend()
    model = dataclasses.replace(backend.catalog.models[0], layers=layers)
    backend.catalog = dataclasses.replace(backend.catalog, models=(model,))
    pipeline = Pipeline(ServeConfig(), backend, lambda *_: None)
    yield pipeline
    await pipeline.close()


async def test_a_map_lies_on_the_part_that_its_layer_covers() -> None:
    """A layer behind a crop in the model has no heat outside that crop."""
    extent = Extent(112, 0, 56, 224)
    image = RawImage(bytes(3 * 224 * 224), *INPUT_SIZE)
    form = HeatmapForm(HeatmapFormat.IMAGE_FLOAT32)
    top = LayerInfo("top", "Conv2D", (None, 7, 7, 8), True, extent)
    async with pipeline_of(top) as pipeline:
        answer = await pipeline.explain(ExplainRequest(image, forms=(form,)))
    assert answer.explanations[0].extent == extent
    heat = np.frombuffer(answer.explanations[0].heatmaps[0].data, "<f4").reshape(INPUT_SIZE)
    rows = np.flatnonzero(heat.any(axis=1))
    assert (rows.min(), rows.max()) == (112, 167)


async def test_maps_of_different_parts_are_not_fused() -> None:
    """Fusing them would put heat in the wrong part: the request is refused, with the reason."""
    part = LayerInfo("part", "Conv2D", (None, 7, 7, 8), True, Extent(0, 0, 9, 9))
    top = LayerInfo("top", "Conv2D", (None, 7, 7, 8), True)
    image = RawImage(bytes(3 * 224 * 224), *INPUT_SIZE)
    fused = ExplainRequest(image, layers=("top", "part"), layer_fusion=LayerFusion.LAYER_CAM)
    async with pipeline_of(top, part) as pipeline:
        with pytest.raises(InvalidRequestError, match="top and part cannot be fused"):
            await pipeline.explain(fused)


@pytest.mark.parametrize(
    ("options", "compile_s"),
    [
        ({}, 5),
        ({"smooth_grad": SmoothGrad(4)}, 5 + 7),
        ({"method": Method.INTEGRATED_GRADIENTS, "pass_count": 3}, 5 + 7),
        ({"method": Method.SCORE_CAM, "pass_count": 2}, 5 + 7 + 7),
    ],
    ids=["one pass", "smooth", "integrated gradients", "scorecam"],
)
async def test_compiling_is_a_stage_of_its_own(options: dict[str, Any], compile_s: int) -> None:
    """Each graph counts once, however many passes waited for it; it is in no other stage."""
    pixels = RawImage(bytes(3 * INPUT_SIZE[0] * INPUT_SIZE[1]), *INPUT_SIZE)
    pipeline = Pipeline(ServeConfig(), CompilingBackend(), lambda *_: None)
    request = ExplainRequest(pixels, targets=TopK(1), forms=(RAW,), **options)
    stats = (await pipeline.explain(request)).stats
    await pipeline.close()
    assert stats.compile_us == compile_s * 1_000_000
    assert stats.queue_us + stats.compute_us < 5_000_000


async def test_waiting_for_a_graph_is_not_waiting_in_the_queue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the pipeline's clock all the time went into compiling; none is left for the queue."""
    now = 0.0

    class Slow(CompilingBackend):
        async def compute(self, key: GraphKey, *arguments: Any) -> Answer[GraphOutput]:
            nonlocal now
            now += 5.0
            return await super().compute(key, *arguments)

    monkeypatch.setattr(module, "perf_counter", lambda: now)
    pixels = RawImage(bytes(3 * INPUT_SIZE[0] * INPUT_SIZE[1]), *INPUT_SIZE)
    pipeline = Pipeline(ServeConfig(), Slow(), lambda *_: None)
    request = ExplainRequest(pixels, targets=TopK(1), forms=(RAW,))
    stats = (await pipeline.explain(request)).stats
    await pipeline.close()
    assert (stats.compile_us, stats.queue_us) == (5_000_000, 0)


async def test_methods_of_many_passes_take_turns_by_caller(
    pipeline: Pipeline, backend: InstantBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a caller with many such requests, another caller's request is among the next."""
    gate = asyncio.Event()
    answered: list[str] = []
    compute = backend.compute

    async def wait_and_compute(key: GraphKey, *arguments: Any) -> Answer[GraphOutput]:
        if key.perturbed:
            await gate.wait()
        return await compute(key, *arguments)

    async def ask(caller: str) -> None:
        image = RawImage(bytes(3 * INPUT_SIZE[0] * INPUT_SIZE[1]), *INPUT_SIZE)
        await pipeline.explain(ExplainRequest(image, smooth_grad=SmoothGrad(2), caller=caller))
        answered.append(caller)

    monkeypatch.setattr(backend, "compute", wait_and_compute)
    flood = [asyncio.create_task(ask("flood")) for _ in range(20)]
    await asyncio.sleep(0.01)
    one = asyncio.create_task(ask("one"))
    await asyncio.sleep(0.01)
    gate.set()
    await asyncio.gather(*flood, one)
    assert answered.index("one") <= 4


class GatedBackend(InstantBackend):
    """Computes perturbed images only once its gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()

    async def compute(self, key: GraphKey, *arguments: Any) -> Answer[GraphOutput]:
        if key.perturbed:
            await self.gate.wait()
        return await super().compute(key, *arguments)


MANY_PASS: list[dict[str, Any]] = [
    {"smooth_grad": SmoothGrad(4)},
    {"method": Method.INTEGRATED_GRADIENTS, "pass_count": 3},
    {"method": Method.SCORE_CAM, "pass_count": 2},
]
AT_ONCE = 2  # requests whose passes run at the same time


@pytest.mark.parametrize("options", MANY_PASS, ids=["smooth", "integrated gradients", "scorecam"])
async def test_methods_of_many_passes_wait_in_a_bounded_queue(options: dict[str, Any]) -> None:
    """Surplus requests are refused; one-pass requests go on, and all that wait are answered."""
    backend, slots = GatedBackend(), 3  # of four: the last is for another caller
    pipeline = Pipeline(ServeConfig(max_queue_length=4), backend, lambda *_: None)
    pixels = RawImage(bytes(3 * INPUT_SIZE[0] * INPUT_SIZE[1]), *INPUT_SIZE)
    tasks = [
        asyncio.create_task(pipeline.explain(ExplainRequest(pixels, **options))) for _ in range(3)
    ]
    await asyncio.sleep(0.05)
    tasks += [
        asyncio.create_task(pipeline.explain(ExplainRequest(pixels, **options))) for _ in range(20)
    ]
    await asyncio.sleep(0.1)
    refused = [task for task in tasks if task.done()]
    assert len(refused) == 23 - AT_ONCE - slots
    assert pipeline.queue_lengths == {"one_pass": 0, "many_pass": slots}
    for task in refused:
        with pytest.raises(
            QueueFullError, match="3 of the 4 places in the queue of many-pass methods"
        ):
            task.result()
    await pipeline.explain(ExplainRequest(pixels))
    patient = asyncio.create_task(
        pipeline.explain(ExplainRequest(pixels, **options), wait_for_slot=True)
    )
    await asyncio.sleep(0.05)
    assert not patient.done()
    backend.gate.set()
    for task in (*(one for one in tasks if one not in refused), patient):
        assert (await task).stats.pass_count > 1
    await pipeline.close()


class Standing(InstantBackend):
    """Never answers."""

    async def compute(self, *_: Any) -> Answer[GraphOutput]:
        await asyncio.Event().wait()
        raise AssertionError


@pytest.mark.parametrize("options", [{}, {"smooth_grad": SmoothGrad(2)}], ids=["one", "many"])
@pytest.mark.parametrize("flooding", [1, 3])
async def test_a_caller_that_fills_the_queue_leaves_a_slot_for_another(
    options: dict[str, Any], flooding: int
) -> None:
    """A newcomer is admitted at once; the others get most of the queue of a stuck device."""
    pipeline = Pipeline(ServeConfig(max_queue_length=40), Standing(), lambda *_: None)
    pixels = RawImage(bytes(3 * INPUT_SIZE[0] * INPUT_SIZE[1]), *INPUT_SIZE)

    async def ask(caller: str, wait: bool) -> None:
        request = ExplainRequest(pixels, caller=caller, **options)
        await pipeline.explain(request, wait_for_slot=wait)

    tasks = [
        asyncio.create_task(ask(f"flood {number % flooding}", wait))
        for number in range(120)
        for wait in (True, False)
    ]
    await asyncio.sleep(0.05)
    assert 35 <= sum(pipeline.queue_lengths.values()) < 40
    tasks.append(asyncio.create_task(ask("one", wait=False)))
    await asyncio.sleep(0.05)
    assert not tasks[-1].done()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(pipeline.queue_lengths.values()) == 0
    await pipeline.close()


@pytest.mark.parametrize(
    ("image_s", "deadline_s", "error"),
    [(0.2, 0.5, QueueFullError), (0.02, 0.06, QueueFullError), (0.2, 0.1, DeadlineError)],
    ids=["long wait", "short deadline", "hopeless"],
)
async def test_an_image_that_would_be_late_is_refused_before_it_is_decoded(
    monkeypatch: pytest.MonkeyPatch, image_s: float, deadline_s: float, error: type[Exception]
) -> None:
    """It costs no time of a thread or of the device; calls without a deadline and streams wait."""
    backend, decoded = Standing(), 0
    model = dataclasses.replace(backend.catalog.models[0], image_s=image_s, alone_s=image_s)
    backend.catalog = dataclasses.replace(backend.catalog, models=(model,))
    pipeline = Pipeline(ServeConfig(), backend, lambda *_: None)
    load = module.load

    def count(*arguments: Any, **options: Any) -> Any:
        nonlocal decoded
        decoded += 1
        return load(*arguments, **options)

    monkeypatch.setattr(module, "load", count)
    patient = ExplainRequest(RawImage(bytes(3 * INPUT_SIZE[0] * INPUT_SIZE[1]), *INPUT_SIZE))
    tasks = [asyncio.create_task(pipeline.explain(patient)) for _ in range(4)]
    await asyncio.sleep(0)
    urgent = dataclasses.replace(patient, deadline=perf_counter() + deadline_s)
    with pytest.raises(error):
        await pipeline.explain(urgent)
    assert decoded == 4
    later = dataclasses.replace(patient, deadline=perf_counter() + 60.0)
    tasks.append(asyncio.create_task(pipeline.explain(later)))
    tasks.append(asyncio.create_task(pipeline.explain(urgent, wait_for_slot=True)))
    await asyncio.sleep(0)
    assert decoded == 6
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await pipeline.close()


async def test_a_request_is_resolved_once(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``explain`` uses what ``reserve`` has resolved, and so do requests with the same options."""
    resolved: list[ExplainRequest] = []
    resolve = translation.resolve

    def count(request: ExplainRequest, *arguments: Any) -> Any:
        resolved.append(request)
        return resolve(request, *arguments)

    monkeypatch.setattr(translation, "resolve", count)
    pixels = RawImage(bytes(3 * INPUT_SIZE[0] * INPUT_SIZE[1]), *INPUT_SIZE)
    requests = [ExplainRequest(pixels), ExplainRequest(pixels, smooth_grad=SmoothGrad(2))]
    reserved = await pipeline.reserve(requests, Ledger().claim(""), wait=False)
    for request, its_reserved in zip(requests, reserved, strict=True):
        await pipeline.explain(request, reserved=its_reserved)
    answer = await pipeline.explain(ExplainRequest(pixels, prediction_count=1, caller="another"))
    assert resolved == requests
    assert len(answer.predictions) == 1


async def test_a_reload_between_reserving_and_explaining_is_survived(
    pipeline: Pipeline, backend: InstantBackend
) -> None:
    """Another pipeline, whose models may be others, finds its own model and keeps the hold."""
    pixels = RawImage(bytes(3 * INPUT_SIZE[0] * INPUT_SIZE[1]), *INPUT_SIZE)
    ledger = Ledger()
    claim, request = ledger.claim(""), ExplainRequest(pixels)
    (reserved,) = await pipeline.reserve([request], claim, wait=False)
    later = Pipeline(ServeConfig(), backend, lambda *_: None)
    await later.explain(request, reserved=reserved)
    assert ledger.held["sending"] == ledger.total > 0
    await later.close()


async def test_cancelling_many_passes_frees_their_slot() -> None:
    """Cancelled while it waits or computes; the next requests are admitted."""
    backend = GatedBackend()
    pipeline = Pipeline(ServeConfig(max_queue_length=1), backend, lambda *_: None)
    pixels = RawImage(bytes(3 * INPUT_SIZE[0] * INPUT_SIZE[1]), *INPUT_SIZE)
    request = ExplainRequest(pixels, smooth_grad=SmoothGrad(4))
    for _ in range(5):
        tasks = []
        for _ in range(AT_ONCE + 1):
            tasks.append(asyncio.create_task(pipeline.explain(request)))
            await asyncio.sleep(0.02)
        with pytest.raises(QueueFullError):
            await pipeline.explain(request)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert all(task.cancelled() for task in tasks)
    await pipeline.close()


@pytest.mark.parametrize("mode", list(ResizeMode))
@pytest.mark.parametrize("size", [(2000, 1500), (224, 20_000)], ids=["photo", "strip"])
@pytest.mark.parametrize(
    ("forms", "k", "is_kept"),
    [([RAW], 1, False), ([GRAY], 0, False), ([RAW, GRAY], 1, True)],
    ids=["raw", "no class", "gray"],
)
async def test_an_image_that_waits_is_kept_only_if_it_is_drawn_on(
    monkeypatch: pytest.MonkeyPatch,
    mode: ResizeMode,
    size: tuple[int, int],
    forms: list[HeatmapForm],
    k: int,
    is_kept: bool,
) -> None:
    """Else only the model's input waits for the device, even if that is a part of the image."""
    decoded: list[weakref.ref[Any]] = []
    is_alive: list[bool] = []

    def decode(*arguments: Any) -> Any:
        image = decode_image(*arguments)
        decoded.append(weakref.ref(image))
        return image

    class Watched(InstantBackend):
        async def compute(self, *arguments: Any) -> Answer[GraphOutput]:
            await asyncio.sleep(0.01)
            is_alive.append(decoded[0]() is not None)
            return await super().compute(*arguments)

    monkeypatch.setattr(module, "decode_image", decode)
    buffer = io.BytesIO()
    Image.new("RGB", size, (90, 20, 200)).save(buffer, "PNG")
    pipeline = Pipeline(ServeConfig(), Watched(), lambda *_: None)
    smooth = SmoothGrad(2)
    await pipeline.explain(asked(buffer.getvalue(), forms, k, resize_mode=mode, smooth_grad=smooth))
    await pipeline.close()
    assert is_alive
    assert set(is_alive) == {is_kept}


@pytest.mark.parametrize("forms", [[RAW], [GRAY], [RAW, GRAY]])
async def test_the_bytes_of_an_image_are_counted_through_all_stages(
    pipeline: Pipeline, images: object, forms: list[HeatmapForm]
) -> None:
    """The reserved bytes are at least those held at the end, at most message, image and answer."""
    data, ledger = jpeg(images, (1600, 1200)), Ledger()
    claim = ledger.claim("")
    request = asked(data, forms)
    (one,) = await pipeline.reserve([request], claim, wait=False)
    reserved = ledger.held["decoding"]
    pixels = 1600 * 1200 if GRAY in forms else 0
    assert 3 * len(data) + (3 + 2) * pixels <= reserved < 3 * len(data) + 5 * pixels + (1 << 20)
    answer = await pipeline.explain(request, reserved=one)
    answered = sum(len(one.data) for one in answer.explanations[0].heatmaps)
    assert 3 * len(data) + 2 * answered <= ledger.total == ledger.held["sending"] <= reserved
    claim.release()
    assert ledger.total == 0
