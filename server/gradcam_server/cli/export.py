"""``gradcam export``."""

from pathlib import Path
from typing import Any

import click

from gradcam_server.cli.errors import errors_for_people
from gradcam_server.config.click_options import from_options, setting_options
from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.catalog import many_pass_keys
from gradcam_server.domain.options import Compiler, GraphFormat, Precision

_MIN_CORRELATION = 0.98
_SETTINGS = (
    *("model", "weights", "preprocessing", "outputs", "labels", "input_size", "custom_objects"),
    *("seed", "warm", "batch_sizes", "max_targets", "log_level", "log_format"),
)
_FORMATS = {"openvino": GraphFormat.OPENVINO, "xla": GraphFormat.STABLEHLO}


@click.command(context_settings={"show_default": True})
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FOLDER",
    help="Folder to write; it must not exist.",
)
@click.option(
    *("--for", "runtime"),
    type=click.Choice(list(_FORMATS)),
    default="openvino",
    help="What runs the graphs: openvino (CPUs), or xla (StableHLO, for CPUs and GPUs; "
    "pip install 'gradcam-server[jax]').",
)
@setting_options(*_SETTINGS)
@click.option(
    "--precision",
    type=click.Choice([precision.value for precision in Precision]),
    default=Precision.FLOAT32.value,
    help="Precision of the network; int8 needs pip install 'gradcam-server[int8]'.",
)
@click.option(
    "--images",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of images like those to be served: to calibrate int8, and to compare a reduced "
    "precision with float32.  [default: the bundled photographs]",
)
@click.option(
    *("--least-correlation", "min_correlation"),
    type=click.FloatRange(0, 1),
    default=_MIN_CORRELATION,
    help="Minimum mean correlation of the maps with those of float32; below it nothing is written.",
)
@click.option(
    "--many-pass",
    is_flag=True,
    help="Also export what the methods of many passes need at the same layers: SmoothGrad, "
    "Score-CAM and Integrated Gradients; with --for xla alone.",
)
@click.option("--force", is_flag=True, help="Write the folder whatever the correlation.")
def export(
    output: Path,
    runtime: str,
    precision: str,
    images: Path | None,
    min_correlation: float,
    many_pass: bool,
    force: bool,
    **options: Any,
) -> None:
    """Compile a model into a folder that gradcam serve runs without TensorFlow.

    \b
    gradcam export --model resnet50 -o resnet50-export
    gradcam serve --model resnet50=resnet50-export

    The folder holds the graphs of Grad-CAM at the default layer and of each --warm. For OpenVINO
    it also holds the first as a SavedModel with the signature "explain", for TensorFlow Serving.
    """  # noqa: D301 - click reads the character \b
    with errors_for_people():
        config = from_options(options)
        from gradcam_server.telemetry.logs import configure

        configure(config.log_level, config.log_format)
        if many_pass and _FORMATS[runtime] is not GraphFormat.STABLEHLO:
            raise click.UsageError("--many-pass needs --for xla")
        manifest = _export(
            config,
            output,
            Precision(precision),
            images,
            0.0 if force else min_correlation,
            _FORMATS[runtime],
            many_pass,
        )
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    click.echo(f"Wrote {output}: {len(manifest.graphs)} graphs in {precision}, {size >> 20} MiB")
    for graph in manifest.graphs:
        click.echo(f"  {graph.key}")
    if agreement := manifest.agreement:
        reference = "float32" if runtime == "openvino" else "TensorFlow in float32"
        click.echo(
            f"Compared with {reference} on {agreement.image_count} samples ({agreement.images}): "
            f"the best class is the same for {agreement.top1_percent:g} %; maps correlate by "
            f"{agreement.correlation_mean:.4f} on average, and by "
            f"{agreement.correlation_worst:.4f} in the worst case"
        )
    click.echo(f"Serve it: gradcam serve --model {manifest.name}={output}")


def _export(
    config: ServeConfig,
    output: Path,
    precision: Precision,
    images: Path | None,
    min_correlation: float,
    graph_format: GraphFormat,
    many_pass: bool,
) -> Any:
    from gradcam_server.engine.engine import Engine
    from gradcam_server.engine.sources.model import ModelSource
    from gradcam_server.errors import CompilerError, StartupError
    from gradcam_server.exports.writer import write
    from gradcam_server.graphs.compilers.base import COMPILERS, find_compiler

    compiler = Compiler.OPENVINO if graph_format is GraphFormat.OPENVINO else Compiler.PJRT
    try:
        find_compiler(compiler)
    except CompilerError as error:
        raise StartupError(
            f"exporting needs {compiler}: pip install 'gradcam-server[{COMPILERS[compiler].extra}]'"
        ) from error
    if output.exists():
        raise StartupError(f"{output} exists already: remove it, or choose another folder")
    engine = Engine(config)
    if len(engine.sources) != 1:
        raise StartupError("one --model can be exported at a time")
    (source,) = engine.sources.values()
    if not isinstance(source, ModelSource):
        raise StartupError(f"{source.served.name} is an export already")
    keys = engine.warm_keys()
    if many_pass:
        keys += many_pass_keys(keys, source.served.default_layer)
    return write(
        source.loaded,
        source.served,
        keys,
        config.batch_sizes,
        output,
        precision,
        images,
        min_correlation,
        graph_format,
    )
