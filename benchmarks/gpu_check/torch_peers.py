"""Part of the check: PyTorch beside the bare graph, in one process on one card.

The closed form under torch.compile takes turns with our bfloat16 graph, so that clocks and heat
affect both alike; then further ways of PyTorch alone.

Usage: python -m gpu_check.torch_peers --bundle FOLDER --platform cuda --seconds 90 --out FILE
"""

import argparse
import importlib.util
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu_check.part import Part, Row, add_options
from gpu_check.timing import alone_ms, rates_by_turns
from gradcam_server.bench.statistics import Spread

if TYPE_CHECKING:
    from gpu_check.torch_network import Explain

_PAIRED_BATCH = 128
_PAIRED_ROUNDS = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("--cache", type=Path, help="folder of what XLA compiled")
    arguments = parser.parse_args()
    part = Part.of(arguments)
    if importlib.util.find_spec("torch") is None:
        part.note("PyTorch was left out: it is not installed")
    elif part.platform == "cpu":
        _rehearse(part)
    else:
        _pair(part, arguments.cache)
        _measure_alone(part)


def _rehearse(part: Part) -> None:
    """One row on a CPU: the code runs, and the rate means nothing."""
    import torch

    from gpu_check.torch_network import build, closed_form

    explain = closed_form(build("cpu", torch.float32))
    _add(part, "closed form, eager, float32", 1, explain, "cpu", always=True)


def _pair(part: Part, cache: Path | None) -> None:
    """Measures our bfloat16 graph and torch.compile in turns."""

    def ratio() -> Row:
        import jax

        from gpu_check.networks import Network

        network = Network(part.bundle / "resnet50-bfloat16", part.device, cache)
        ours = network.explain(_PAIRED_BATCH)
        inputs = [jax.device_put(one, network.device) for one in network.arrays(_PAIRED_BATCH)]

        # JAX has loaded the libraries of CUDA first, as in a process of its own.
        import torch

        from gpu_check.torch_network import build, closed_form

        theirs = _compiled(closed_form(build("cuda", torch.bfloat16)), "default")
        calls = {
            "ours": (lambda: ours(*inputs), jax.block_until_ready),
            "torch": _timed(theirs, _PAIRED_BATCH, "cuda"),
        }
        rates = rates_by_turns(calls, _PAIRED_BATCH, _PAIRED_ROUNDS, 0.3)
        return {
            "ratio": asdict(Spread.of_ratios(rates["ours"], rates["torch"])),
            "ours_images_per_s": asdict(Spread.of(rates["ours"])),
            "torch_images_per_s": asdict(Spread.of(rates["torch"])),
        }

    names = {"kind": "pair", "way": "torch.compile, closed form, bfloat16"}
    part.measure({**names, "batch_size": _PAIRED_BATCH}, 20, ratio, always=True)


def _measure_alone(part: Part) -> None:
    import torch

    from gpu_check.torch_network import (
        backward_through_all,
        build,
        closed_form,
        gradient_at_layer,
    )

    if not torch.cuda.is_available():
        part.note("PyTorch was left out: it sees no GPU")
        return
    half, single = build("cuda", torch.bfloat16), build("cuda", torch.float32)
    ways: dict[str, tuple[Callable[[], Explain], tuple[int, ...]]] = {
        "float32 (TF32), backward through all": (lambda: backward_through_all(single), (128, 1)),
        "closed form, eager, bfloat16": (lambda: closed_form(half), (128, 1, 256)),
        "torch.compile, closed form, bfloat16, CUDA graph": (
            lambda: _compiled(closed_form(half), "reduce-overhead"),
            (1,),
        ),
        "autograd at the layer, bfloat16": (lambda: gradient_at_layer(half), (128, 1, 256)),
        "torch.compile, closed form, bfloat16": (
            lambda: _compiled(closed_form(half), "default"),
            (256,),
        ),
        "float32 (TF32), backward through all, large": (
            lambda: backward_through_all(single),
            (256,),
        ),
    }
    for way, (make, batch_sizes) in ways.items():
        explain = make()
        for batch_size in batch_sizes:
            _add(part, way.removesuffix(", large"), batch_size, explain, "cuda")


def _compiled(explain: Any, mode: str) -> Any:
    import torch

    torch._dynamo.reset()
    return torch.compile(explain, mode=mode, dynamic=False)


def _add(
    part: Part, way: str, batch_size: int, explain: Any, device: str, *, always: bool = False
) -> None:
    def run() -> Row:
        call, wait = _timed(explain, batch_size, device)
        rounds, seconds = (5, 0.25) if device == "cuda" else (2, 0.1)
        rates = rates_by_turns({way: (call, wait)}, batch_size, rounds, seconds)
        return {
            "images_per_s": asdict(Spread.of(rates[way])),
            "call_ms": alone_ms(call, wait, 20, 0.5),
        }

    needed_s = 25 if "compile" in way else 5
    part.measure(
        {"kind": "torch", "way": way, "batch_size": batch_size}, needed_s, run, always=always
    )


def _timed(
    explain: Any, batch_size: int, device: str
) -> tuple[Callable[[], Any], Callable[[Any], object]]:
    """Returns a call on one batch, after a few to warm up, and what waits for it."""
    import torch

    from gpu_check.torch_network import images

    pixels = images(batch_size, device)
    for _ in range(3 if device == "cuda" else 1):
        explain(pixels)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    return lambda: explain(pixels), lambda _: wait()


if __name__ == "__main__":
    main()
