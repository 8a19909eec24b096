"""Part of the check: the CPU of the same machine, to weigh its price against the GPU's.

Usage: python -m gpu_check.cpu --bundle FOLDER --platform cpu --seconds 60 --out FILE
"""

import argparse
import importlib.util
import shutil
from dataclasses import asdict
from functools import partial
from pathlib import Path

from gpu_check.part import Part, Row, add_options
from gpu_check.timing import Call, Wait, alone_ms, rates_by_turns
from gradcam_server.bench.statistics import Spread

_BATCH_SIZES = (1, 32, 8)
_SMALL = (1,)
# The time that torch.compile may need for its C++ code.
_COMPILE_S = 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("--cache", type=Path, help="folder of what XLA compiled")
    parser.add_argument("--short", action="store_true", help="a rehearsal: few rows")
    arguments = parser.parse_args()
    part = Part.of(arguments)
    has_torch = importlib.util.find_spec("torch") is not None
    if has_torch:
        _measure_torch(part, arguments.short)
    else:
        part.note("PyTorch is not installed, so the CPU is measured by JAX alone.")
    _measure_jax(part, arguments.cache, _SMALL if has_torch else (1, 8))
    if has_torch and not arguments.short:
        _measure_torch_compile(part)


def _measure_torch(part: Part, short: bool) -> None:
    import torch

    from gpu_check.torch_network import build, closed_form, images

    for dtype in (torch.float32,) if short else (torch.bfloat16, torch.float32):
        explain = closed_form(build("cpu", dtype))
        way = f"torch, closed form, eager, {str(dtype).removeprefix('torch.')}"
        for batch_size in _SMALL if short else _BATCH_SIZES:
            pixels = images(batch_size, "cpu")
            _add(part, way, batch_size, 5, partial(explain, pixels))


def _measure_torch_compile(part: Part) -> None:
    if not (shutil.which("g++") or shutil.which("clang++")):
        part.note("torch.compile was left out on the CPU: there is no C++ compiler.")
        return
    import torch

    from gpu_check.torch_network import build, closed_form, images

    for dtype, batch_size in ((torch.bfloat16, 32), (torch.float32, 1)):
        explain = torch.compile(closed_form(build("cpu", dtype)), dynamic=False)
        pixels = images(batch_size, "cpu")
        way = f"torch.compile, closed form, {str(dtype).removeprefix('torch.')}"
        _add(part, way, batch_size, _COMPILE_S, partial(explain, pixels))


def _measure_jax(part: Part, cache: Path | None, batch_sizes: tuple[int, ...]) -> None:
    import jax

    from gpu_check.networks import Network

    network = Network(part.bundle / "resnet50-float32", "CPU:0", cache)
    for batch_size in batch_sizes:
        function = network.explain(batch_size)
        inputs = [jax.device_put(one, network.device) for one in network.arrays(batch_size)]
        way = "our graph by JAX, float32"
        _add(part, way, batch_size, 15, partial(function, *inputs), jax.block_until_ready)


def _add(
    part: Part,
    way: str,
    batch_size: int,
    needed_s: float,
    call: Call,
    wait: Wait = lambda _: None,
) -> None:
    def run() -> Row:
        rates = rates_by_turns({way: (call, wait)}, batch_size, 3, 0.3)
        return {
            "images_per_s": asdict(Spread.of(rates[way])),
            "call_ms": alone_ms(call, wait, 20, 0.5),
        }

    names = {"kind": "cpu", "way": way, "batch_size": batch_size}
    part.measure(names, needed_s, run, always=not part.rows)


if __name__ == "__main__":
    main()
