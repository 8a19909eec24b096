"""Models and graphs: which are warm, compiled at first use, or refused."""

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.catalog import ServedModel
from gradcam_server.domain.options import Compiler, ComputeStreams
from gradcam_server.domain.requests import Method, ScoreType
from gradcam_server.engine.engine import Engine
from gradcam_server.errors import InvalidRequestError, NotFoundError, StartupError
from gradcam_server.graphs.compilers import autotune
from gradcam_server.graphs.executable import CompiledGraph, at_once
from support.small_model import build_network

DEFAULT, WARM, OTHER, THIRD = "block", "conv3", "conv2", "conv1"

Make = Callable[..., Engine]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Makes engines of a small network in a file."""
    path = tmp_path_factory.mktemp("model") / "small.keras"
    build_network().save(path)
    return partial(make_engine, path)


def make_engine(
    path: Path,
    *warm: str,
    max_extra_graphs: int = 1,
    compiler: Compiler = Compiler.TENSORFLOW,
    cache_dir: str | None = None,
    compute_streams: ComputeStreams = 1,
) -> Engine:
    return Engine(
        ServeConfig(
            model=(f"small={path}",),
            preprocessing=("lite",),
            warm=warm,
            batch_sizes=(1,),
            compiler=compiler,
            cache_dir=cache_dir,
            compute_streams=compute_streams,
            compute_threads=2,
            max_targets=3,
            max_extra_graphs=max_extra_graphs,
        )
    )


@pytest.fixture(scope="module")
def warm(make: Make) -> Engine:
    """An engine with two warm layers, the default and another."""
    engine = make(f"gradcam@{WARM}")
    engine.warm_up()
    return engine


async def find(
    engine: Engine, layer: str, targets: int = 1, model: ServedModel | None = None
) -> CompiledGraph:
    catalog = engine.catalog
    model = model or catalog.find_model("")
    layers = model.resolve_layers((layer,) if layer else ())
    key = catalog.graph_key(model, layers, Method.GRAD_CAM, ScoreType.LOGIT, targets)
    return await engine.graph(key)


async def test_warm_layers_need_no_compiler(warm: Engine) -> None:
    """The default is one graph for any number of targets; other layers have one for one."""
    counted = warm.compilation_count
    assert counted == 3
    assert await find(warm, "", 1) is await find(warm, DEFAULT, 3)
    assert (await find(warm, WARM, 0)).key.max_targets == 1
    assert (await find(warm, WARM, 2)).key.max_targets == 3
    assert warm.compilation_count == counted
    assert warm.catalog.compiled_layers(warm.catalog.find_model("")) == [DEFAULT, WARM]


@pytest.mark.parametrize("chosen", [Compiler.TENSORFLOW, Compiler.XLA])
def test_the_catalog_says_what_auto_chose(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, chosen: Compiler
) -> None:
    """The compiler that was the faster one, not the setting; nothing before it is known."""
    monkeypatch.setattr(autotune, "find_candidates", lambda device: [chosen])
    engine = make(compiler=Compiler.AUTO, cache_dir=str(tmp_path))
    assert engine.catalog.models[0].compiler == ""
    engine.warm_up()
    assert engine.catalog.models[0].compiler == chosen.value


@pytest.mark.parametrize(
    ("compiler", "wanted", "count"),
    [(Compiler.OPENVINO, 2, 2), (Compiler.OPENVINO, 1, 1), (Compiler.TENSORFLOW, 2, 1)],
)
async def test_the_catalog_has_the_streams_of_the_model(
    make: Make, compiler: Compiler, wanted: int, count: int, tmp_path: Path
) -> None:
    """Those that were made, not the setting; graphs that are compiled later may have as many."""
    engine = make(compiler=compiler, cache_dir=str(tmp_path), compute_streams=wanted)
    engine.warm_up()
    assert engine.catalog.models[0].streams == 1
    await engine.add_streams(at_once)
    assert engine.catalog.models[0].streams == count
    assert engine.device_count == 1 + wanted


def test_the_catalog_says_what_an_image_costs(warm: Engine) -> None:
    """The front end refuses by it what would be late; as measured for the default graph."""
    graph = next(iter(warm.warm.values()))
    (model,) = warm.catalog.models
    assert (model.alone_s, model.image_s) == (graph.min_s, graph.image_s)
    assert graph.min_s > 0


async def test_many_requests_for_a_cold_layer_compile_it_once(make: Make) -> None:
    """Requests that come while it compiles wait for the same graph."""
    engine = make()
    graphs = await asyncio.gather(*(find(engine, OTHER) for _ in range(5)))
    assert len(set(map(id, graphs))) == 1
    assert engine.compilation_count == 1
    assert graphs[0].min_s > 1e-6  # it was measured: the soonest graph would be no sooner
    engine.close()


async def test_the_least_recently_used_cold_graph_goes(make: Make) -> None:
    """Memory is bounded; an evicted graph is compiled again at its next use."""
    engine = make(max_extra_graphs=2)
    first = await find(engine, OTHER)
    second = await find(engine, THIRD)
    assert await find(engine, OTHER) is first
    await find(engine, WARM)  # evicts THIRD
    assert await find(engine, OTHER) is first
    assert await find(engine, THIRD) is not second
    assert engine.compilation_count == 4
    engine.close()


async def test_one_caller_that_goes_away_stops_nobody_else(make: Make) -> None:
    """A cancelled request leaves the compilation to the others."""
    engine = make()
    tasks = [asyncio.create_task(find(engine, OTHER)) for _ in range(2)]
    await asyncio.sleep(0.01)
    tasks[0].cancel()
    assert (await tasks[1]).key.layers == (OTHER,)
    engine.close()


async def test_cold_layers_can_be_refused(make: Make) -> None:
    """An operator may forbid compiling under traffic."""
    engine = make(max_extra_graphs=0)
    with pytest.raises(InvalidRequestError, match=f"is not compiled.*--warm gradcam@{OTHER}"):
        await find(engine, OTHER)
    engine.close()


@pytest.mark.parametrize(
    ("layers", "method", "score_type"),
    [
        (("block",), Method.GRAD_CAM, ScoreType.PROBABILITY),
        (("conv3", "block"), Method.LAYER_CAM, ScoreType.PROBABILITY),
        (("conv3",), Method.GRAD_CAM, ScoreType.LOGIT),
    ],
)
async def test_the_option_that_an_error_names_makes_the_graph_warm(
    tmp_path: Path, layers: tuple[str, ...], method: Method, score_type: ScoreType
) -> None:
    """A server that is started with it answers the request that was refused."""
    build_network().save(tmp_path / "small.keras")

    async def ask(*warm: str) -> CompiledGraph:
        engine = Engine(
            ServeConfig(
                model=(f"small={tmp_path / 'small.keras'}",),
                preprocessing=("lite",),
                warm=warm,
                batch_sizes=(1,),
                compiler=Compiler.TENSORFLOW,
                max_targets=2,
                max_extra_graphs=0,
            )
        )
        engine.warm_up()
        catalog = engine.catalog
        model = catalog.find_model("")
        try:
            return await engine.graph(catalog.graph_key(model, layers, method, score_type, 1))
        finally:
            engine.close()

    with pytest.raises(InvalidRequestError, match="compiles nothing at first use") as refused:
        await ask()
    option = str(refused.value).partition("Start it with --warm ")[2]
    graph = await ask(option)
    assert (graph.key.layers, graph.key.score_type) == (layers, score_type)


@pytest.mark.parametrize(
    ("layer", "kind", "message"),
    [
        ("nope", NotFoundError, "no layer 'nope'; the default is 'block'.*conv3"),
        ("pool", InvalidRequestError, "has no positions"),
        ("image", InvalidRequestError, "it is the input"),
    ],
)
async def test_impossible_layers_are_refused(
    warm: Engine, layer: str, kind: type[Exception], message: str
) -> None:
    """The error lists candidates."""
    with pytest.raises(kind, match=message):
        await find(warm, layer)


def test_unknown_names_are_refused(warm: Engine) -> None:
    """The error lists the models."""
    with pytest.raises(NotFoundError, match="this server has: small"):
        warm.catalog.find_model("vgg16")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("gradcam@nope", "--warm gradcam@nope: .*no layer 'nope'"),
        ("gradcam@pool", "has no positions"),
        ("magic", "the method must be one of gradcam, gradcam"),
        ("gradcam:loss", "the score must be logit or probability"),
    ],
)
def test_what_cannot_be_warm_stops_the_start(make: Make, option: str, message: str) -> None:
    """The operator sees the error before serving."""
    with pytest.raises(StartupError, match=message):
        make(option).warm_up()
