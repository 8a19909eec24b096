"""Part of the check: the bare graph of ResNet50 by JAX, by batch size, beside its ceilings.

"on the device" is without copies of images; "from the host" is as the server runs it, from uint8
images in NumPy arrays to answers in NumPy arrays, with several batches in flight.

Usage: python -m gpu_check.graph --precision bfloat16 --bundle FOLDER --platform cuda
    --seconds 90 --out FILE
"""

import argparse
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from gpu_check import resnet50
from gpu_check.networks import Network
from gpu_check.part import Part, Row, add_options
from gpu_check.timing import alone_ms, pipelined_rate, rates_by_turns
from gradcam_server.bench.statistics import Spread

# The most telling batch sizes first, as time may run out.
ORDER = (128, 1, 256, 32, 8, 64, 16, 4, 2)
PRECISIONS = {
    "bfloat16": ("resnet50-bfloat16", False),
    "tf32": ("resnet50-float32", True),
    "float32": ("resnet50-float32", False),
}
_DEPTH = 3


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        rounds: Rounds of each throughput.
        turn_s: Seconds of a turn.
        alone: Calls alone.
        alone_s: Seconds for the calls alone, of each kind.
        needed_s: Seconds that a batch size takes, roughly, with its compilation.
    """

    rounds: int
    turn_s: float
    alone: int
    alone_s: float
    needed_s: float


EFFORTS = {
    "cuda": Effort(5, 0.25, 20, 0.5, 10.0),
    # A rehearsal: XLA's code for CPUs takes about 0.2 s for an image.
    "cpu": Effort(2, 0.1, 2, 0.1, 25.0),
}


def measure_batch_size(network: Network, batch_size: int, effort: Effort) -> Row:
    """Measures one batch size; returns a row's values."""
    arrays = network.arrays(batch_size)
    inputs = [jax.device_put(array, network.device) for array in arrays]
    explain, predict = network.explain(batch_size), network.predict(batch_size)
    began = time.perf_counter()
    jax.block_until_ready(explain(*inputs))
    compile_s = time.perf_counter() - began
    calls = {"explain": (lambda: explain(*inputs), jax.block_until_ready)}
    if predict is not None:
        calls["predict"] = (lambda: predict(*inputs), jax.block_until_ready)
    rates = rates_by_turns(calls, batch_size, effort.rounds, effort.turn_s)
    row: dict[str, Any] = {
        "compile_s": compile_s,
        "images_per_s": asdict(Spread.of(rates["explain"])),
        "call_ms": alone_ms(
            lambda: explain(*inputs), jax.block_until_ready, effort.alone, effort.alone_s
        ),
    }
    if predict is not None:
        row["predict_images_per_s"] = asdict(Spread.of(rates["predict"]))
        row["explain_over_predict"] = asdict(Spread.of_ratios(rates["predict"], rates["explain"]))
    compiled, items = network.compiled(batch_size), network.items(batch_size)

    def dispatch() -> Any:
        return compiled.dispatch(items, batch_size)

    row["numpy_call_ms"] = alone_ms(dispatch, lambda wait: wait(), effort.alone, effort.alone_s)
    from_host = [
        pipelined_rate(dispatch, batch_size, _DEPTH, effort.turn_s) for _ in range(effort.rounds)
    ]
    return {**row, "from_host_images_per_s": asdict(Spread.of(from_host))}


def measure_ceilings(device: Any) -> Row:
    """Measures the speed of a bfloat16 matrix product and of reading and writing memory."""
    is_cpu = device.platform == "cpu"
    side, count = (1024, 2**24) if is_cpu else (8192, 2**28)
    with jax.default_device(device):
        matrix = jax.random.normal(jax.random.key(0), (side, side), jnp.bfloat16)
        array = jnp.zeros(count, jnp.float32)
    product, copy = jax.jit(lambda x: x @ x), jax.jit(lambda x: x + 1)
    calls = {
        "product": (lambda: product(matrix), jax.block_until_ready),
        "copy": (lambda: copy(array), jax.block_until_ready),
    }
    rates = rates_by_turns(calls, 1, 3, 0.2)
    return {
        "flop_per_s": max(rates["product"]) * 2 * side**3,
        "bytes_per_s": max(rates["copy"]) * 2 * array.nbytes,
        "flop_per_image": resnet50.flop(),
    }


def with_ceilings(row: Row, ceilings: Row | None) -> Row:
    """Adds the upper bounds of a bfloat16 row, and its share of the lower bound."""
    if ceilings is None or row["precision"] != "bfloat16":
        return row
    speeds = ceilings["flop_per_s"], ceilings["bytes_per_s"]
    bounds = resnet50.max_images_per_s(row["batch_size"], 2, *speeds)
    share = row["images_per_s"]["median"] / min(bounds.values())
    return {**row, "max_images_per_s": bounds, "share_of_max": share}


def _measure(network: Network, names: Row, effort: Effort, ceilings: Row | None) -> Row:
    values = measure_batch_size(network, names["batch_size"], effort)
    return with_ceilings({**names, **values}, ceilings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("--precision", choices=PRECISIONS, required=True)
    parser.add_argument("--cache", type=Path, help="folder of what XLA compiled")
    arguments = parser.parse_args()
    part, effort = Part.of(arguments), EFFORTS[arguments.platform]
    export, fast_products = PRECISIONS[arguments.precision]
    network = Network(part.bundle / export, part.device, arguments.cache, fast_products)
    ceilings = None
    if arguments.precision == "bfloat16":
        ceilings = part.measure(
            {"kind": "ceilings", "device": str(network.device.device_kind)},
            10,
            lambda: measure_ceilings(network.device),
        )
    sizes = part.batch_sizes(size for size in ORDER if size in network.batch_sizes)
    for number, batch_size in enumerate(sizes):
        names = {"kind": "graph", "precision": arguments.precision, "batch_size": batch_size}
        run = partial(_measure, network, names, effort, ceilings)
        part.measure(names, effort.needed_s, run, always=number == 0)


if __name__ == "__main__":
    main()
