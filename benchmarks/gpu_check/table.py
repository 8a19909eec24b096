"""Prints the results of the check as a table, and which goals are met. Only the standard library.

Usage: python benchmarks/gpu_check/table.py FILE [--plots FOLDER] [--price-per-hour gpu=3.00]
"""

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
DEFAULT_PRICES = {"gpu": 3.00, "cpu": 0.80}
"""Euro per hour; assumptions."""

_Cells = Sequence[str]


def add_price_option(parser: argparse.ArgumentParser) -> None:
    """Adds the option that ``prices_of`` reads."""
    parser.add_argument(
        "--price-per-hour",
        action="append",
        default=[],
        metavar="gpu=3.00",
        type=_price,
        help="euro per hour of the machine with the GPU (gpu) or of one without (cpu)",
    )


def prices_of(arguments: argparse.Namespace) -> dict[str, float]:
    """Returns the given prices, and the default prices of what was not given."""
    return {**DEFAULT_PRICES, **dict(arguments.price_per_hour)}


def format_results(results: Row) -> str:
    """Returns the whole text: tables, goals, notes."""
    sections = (
        _machine(results),
        _answers(results),
        _graph(results),
        _torch(results),
        _served(results),
        _startup(results),
        _cpu(results),
        _goals(results),
        _notes(results),
    )
    return "\n\n".join("\n".join(lines) for section in sections if (lines := list(section)))


def goals(results: Row) -> list[tuple[str, str, float | None, bool | None]]:
    """Compares the results with the goals.

    Returns:
        For each goal its name, the limit in words, the value, and whether it is met; None and None
        if it was not measured.
    """
    best = max((_median(row, "images_per_s") for row in _graphs(results)), default=None)
    pair = _first(_rows(results, "pair"))
    single = _first(row for row in _graphs(results) if row["batch_size"] == 1)
    predicting = [row for row in _graphs(results) if "explain_over_predict" in row]
    largest = max(predicting, key=lambda row: row["batch_size"], default=None)
    answers = [row for row in _rows(results, "answers") if "ok" in row or "error" in row]
    right = sum(row.get("ok") is True for row in answers) / len(answers) if answers else None
    found: list[tuple[str, str, float | None, float, bool]] = [
        ("share of the measured answers within their limits", "all", right, 1, True),
        ("bare graph, bfloat16, best batch size, images/s", ">= 15,000", best, 15_000, True),
        ("over torch.compile, in turns", ">= 1.3", _median(pair, "ratio"), 1.3, True),
        (
            "explanation over prediction, bfloat16, time",
            "<= 1.03",
            _median(largest, "explain_over_predict"),
            1.03,
            False,
        ),
        ("served raw over the bare graph", ">= 0.8", best_efficiency(results), 0.8, True),
        ("one image on the device, ms", "<= 2", single["call_ms"] if single else None, 2, False),
    ]
    return [
        (name, words, value, _is_met(value, limit, at_least))
        for name, words, value, limit, at_least in found
    ]


def bare_rate(results: Row) -> float | None:
    """Returns images/s from the host at the best batch size, bfloat16; None if unknown."""
    rates = [_median(row, "from_host_images_per_s") for row in _graphs(results)]
    return max(rates, default=None)


def best_efficiency(results: Row) -> float | None:
    """Returns the best served throughput of raw images over the bare graph's; None if unknown."""
    rates = [
        _median(row, "images_per_s")
        for row in _rows(results, "served")
        if row["payload"] == "raw" and row["loop"] == "closed"
    ]
    bare = bare_rate(results)
    return max(rates) / bare if rates and bare else None


def draw(results: Row, folder: Path) -> list[Path]:
    """Draws images/s by batch size, and served images/s by front ends.

    Args:
        results: The results.
        folder: The folder of the plots; it is made.

    Returns:
        The written files.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, lines, x_label, is_log in (
        ("gpu_batch_sizes", _lines_by_batch_size(results), "batch size", True),
        ("gpu_front_ends", _lines_by_frontends(results), "front ends", False),
    ):
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        for label, points in lines.items():
            xs, ys = zip(*sorted(points), strict=True)
            axes.plot(xs, ys, "--" if "bare" in label or "limit" in label else "o-", label=label)
        if is_log:
            axes.set_xscale("log", base=2)
        counts = sorted({x for points in lines.values() for x, _ in points})
        axes.set_xticks(counts, labels=list(map(str, counts)))
        axes.set_ylim(bottom=0)
        axes.set_xlabel(x_label)
        axes.set_ylabel("images/s")
        if lines:
            axes.legend(loc="upper left", fontsize="small")
        with mpl.rc_context({"svg.hashsalt": "gradcam"}):  # the same results give the same file
            figure.savefig(path := folder / f"{name}.svg", metadata={"Date": None})
        written.append(path)
    return written


_Lines = dict[str, list[tuple[float, float]]]


def _lines_by_batch_size(results: Row) -> _Lines:
    lines: _Lines = {}
    for row in _rows(results, "graph"):
        point = row["batch_size"], _median(row, "images_per_s")
        lines.setdefault(f"ours, {row['precision']}", []).append(point)
    for row in _rows(results, "torch"):
        point = row["batch_size"], _median(row, "images_per_s")
        lines.setdefault(f"torch: {row['way']}", []).append(point)
    for row in _rows(results, "pair"):
        point = row["batch_size"], _median(row, "torch_images_per_s")
        lines.setdefault(f"torch: {row['way']}", []).append(point)
    for row in _graphs(results):
        if "max_images_per_s" in row:
            point = row["batch_size"], min(row["max_images_per_s"].values())
            lines.setdefault("upper limit, bfloat16", []).append(point)
    return lines


def _lines_by_frontends(results: Row) -> _Lines:
    lines: _Lines = {}
    for row in _rows(results, "served"):
        if row["loop"] == "closed" and row["users"] > 1:
            point = row["frontends"], _median(row, "images_per_s")
            lines.setdefault(f"{row['payload']}, {row['call']}", []).append(point)
    if lines and (bare := bare_rate(results)):
        counts = [count for points in lines.values() for count, _ in points]
        lines["bare graph, from the host"] = [(count, bare) for count in set(counts)]
    return lines


def images_per_euro(images_per_s: float, price_per_hour: float) -> float:
    """Returns how many images a euro buys."""
    return images_per_s * 3600 / price_per_hour


def _rows(results: Row, kind: str) -> Iterator[Row]:
    """Yields the rows of a kind, without those that failed."""
    for part in results["parts"].values():
        for row in part["rows"]:
            if row["kind"] == kind and (kind == "answers" or "error" not in row):
                yield row


def _graphs(results: Row) -> list[Row]:
    """The rows of the bfloat16 graph."""
    return [row for row in _rows(results, "graph") if row["precision"] == "bfloat16"]


def _first(rows: Iterable[Row]) -> Row | None:
    return next(iter(rows), None)


def _median(row: Row | None, key: str) -> Any:
    return None if row is None else row[key]["median"]


def _is_met(value: float | None, limit: float, at_least: bool) -> bool | None:
    if value is None:
        return None
    return value >= limit if at_least else value <= limit


def _machine(results: Row) -> Iterator[str]:
    machine = results.get("machine", {})
    yield f"gradcam-server on {machine.get('device', 'an unknown device')}"
    yield ", ".join(f"{name} {value}" for name, value in machine.items() if name != "device")
    for name, part in results["parts"].items():
        yield f"  {name}: {part['status']}, {part['seconds']:.0f} s, {len(part['rows'])} rows"


def _answers(results: Row) -> Iterator[str]:
    rows = list(_rows(results, "answers"))
    names = list(dict.fromkeys(key for row in rows for key in row if key not in {"kind", "ok"}))
    cells = [
        [*(_cell(row.get(name)) for name in names), "ok" if row.get("ok") is True else "WRONG"]
        for row in rows
    ]
    yield from _section("Answers", [*names, ""], cells)


def _graph(results: Row) -> Iterator[str]:
    for row in _rows(results, "ceilings"):
        yield (
            f"Ceilings: {row['flop_per_s'] / 1e12:,.3g} Tflop/s (bfloat16 products), "
            f"{row['bytes_per_s'] / 1e9:,.3g} GB/s (memory)"
        )
    header = ["precision", "batch", "images/s on the device", "from the host", "call ms"]
    header += ["numpy to numpy ms", "explain/predict", "of the ceiling", "compile s"]
    order = sorted(_rows(results, "graph"), key=lambda row: (row["precision"], row["batch_size"]))
    cells = [
        [
            row["precision"],
            str(row["batch_size"]),
            _spread(row["images_per_s"]),
            _spread(row["from_host_images_per_s"]),
            f"{row['call_ms']:.2f}",
            f"{row['numpy_call_ms']:.2f}",
            _spread(row.get("explain_over_predict"), 3),
            _percent(row.get("share_of_max")),
            f"{row['compile_s']:.1f}",
        ]
        for row in order
    ]
    yield from _section("ResNet50, Grad-CAM of 5 classes, bare graph", header, cells)


def _torch(results: Row) -> Iterator[str]:
    cells = [
        [row["way"], str(row["batch_size"]), _spread(row["images_per_s"]), f"{row['call_ms']:.2f}"]
        for row in _rows(results, "torch")
    ]
    for row in _rows(results, "pair"):
        name = f"{row['way']}, in turns: ours is {_spread(row['ratio'], 3)} times as fast"
        cells.insert(0, [name, str(row["batch_size"]), _spread(row["torch_images_per_s"]), ""])
    yield from _section("PyTorch", ["way", "batch", "images/s", "call ms"], cells)


def _served(results: Row) -> Iterator[str]:
    bare = bare_rate(results)
    header = ["front ends", "payload", "call", "load", "images/s", "of bare", "p50 ms", "p99 ms"]
    header += ["batch", "CPU ms front end", "engine", "failures", "generator"]
    cells = []
    for row in _rows(results, "served"):
        is_closed = row["loop"] == "closed"
        load = f"{row['users']} users" if is_closed else f"{row['requests_per_s']:,.0f}/s"
        cpu, rate = row["cpu"], _median(row, "images_per_s")
        front_end, total = cpu["front_end_ms"], cpu["server_ms"]
        engine = None if total is None else total - front_end
        cells.append(
            [
                *(str(row["frontends"]), row["payload"], row["call"], load, f"{rate:,.0f}"),
                _percent(rate / bare if bare else None),
                *(_cell(row["latency_ms"][name]) for name in ("p50", "p99")),
                *map(_cell, (row["mean_batch_size"], front_end, engine)),
                _failures(row["failures"]),
                row["generator"]["bottleneck"] or f"{row['generator']['cores']:.0%} of a core",
            ]
        )
    yield from _section("gradcam serve, ResNet50 in bfloat16", header, cells)


def _startup(results: Row) -> Iterator[str]:
    header = ["export", "cache", "start to SERVING, s", "of it graphs, s", "compiled", "from cache"]
    header += ["GPU MiB", "limit MiB"]
    cells = [
        [
            *(row["export"], row["cache"], f"{row['ready_s']:.1f}", _cell(row["graphs_s"])),
            *(_cell(row["compiled_modules"]), _cell(row["cached_modules"])),
            *(_cell(row.get("device_mib")), _cell(row.get("limit_mib"))),
        ]
        for row in _rows(results, "startup")
    ]
    yield from _section("Start", header, cells)


def _cpu(results: Row) -> Iterator[str]:
    rows = list(_rows(results, "cpu"))
    cells = [
        [row["way"], str(row["batch_size"]), _spread(row["images_per_s"]), f"{row['call_ms']:.1f}"]
        for row in rows
    ]
    yield from _section("The CPU of this machine", ["way", "batch", "images/s", "call ms"], cells)
    gpu = bare_rate(results) if results["platform"] == "cuda" else None
    if not rows or gpu is None:
        return
    prices = results["prices"]
    cpu = max(_median(row, "images_per_s") for row in rows)
    for name, rate in (("GPU", gpu), ("CPU", cpu)):
        price = prices[name.lower()]
        bought = images_per_euro(rate, price)
        yield (
            f"{name}: {rate:,.0f} images/s at {price:.2f} euro an hour (an assumption): "
            f"{bought / 1e6:,.2f} million images per euro"
        )
    even = cpu * prices["gpu"] / prices["cpu"]
    yield (
        f"The GPU is cheaper for more than {even:,.0f} images/s: as many CPUs as compute them cost "
        "as much as it"
    )


def _goals(results: Row) -> Iterator[str]:
    if results["platform"] == "cpu":
        yield "A rehearsal on a CPU: the goals are those of a GPU, and are not judged."
        return
    words = {True: "met", False: "MISSED", None: "not measured"}
    cells = [
        [name, limit, _cell(value), words[is_met]] for name, limit, value, is_met in goals(results)
    ]
    yield from _section("Goals", ["goal", "limit", "found", ""], cells)


def _notes(results: Row) -> Iterator[str]:
    for name, part in results["parts"].items():
        for sentence in part["notes"]:
            yield f"{name}: {sentence}"
        for row in part["rows"]:
            if "error" in row:
                which = ", ".join(
                    str(value) for key, value in row.items() if key not in {"kind", "error"}
                )
                yield f"{name}: {which} failed: {row['error']}"


def _section(title: str, header: _Cells, rows: Sequence[_Cells]) -> Iterator[str]:
    """Yields a title and aligned columns; nothing without rows."""
    if not rows:
        return
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    yield title
    for cells in (header, *rows):
        pairs = list(zip(cells, widths, strict=True))
        yield "  ".join(
            text.rjust(width) if _is_number(text) else text.ljust(width) for text, width in pairs
        ).rstrip()


def _is_number(text: str) -> bool:
    return text[:1].isdigit()


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return (
        f"{value:,.3g}"
        if isinstance(value, float) and abs(value) < 1000
        else (f"{value:,.0f}" if isinstance(value, float) else str(value))
    )


def _spread(spread: Row | None, digits: int = 0) -> str:
    """A median with its quartiles."""
    if spread is None:
        return "-"
    median, low, high = (f"{spread[key]:,.{digits}f}" for key in ("median", "low", "high"))
    return f"{median} ({low} to {high})"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _failures(failures: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in failures.items()) or "none"


def _price(text: str) -> tuple[str, float]:
    name, separator, price = text.partition("=")
    try:
        value = float(price)
    except ValueError:
        value = 0.0
    if name not in DEFAULT_PRICES or not separator or not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} must be gpu=EURO or cpu=EURO, such as gpu=3.00")
    return name, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="gpu_check.json")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="also draw; needs matplotlib")
    add_price_option(parser)
    arguments = parser.parse_args()
    results = json.loads(arguments.file.read_text("utf-8"))
    if arguments.price_per_hour:
        results["prices"] = prices_of(arguments)
    print(format_results(results))
    if arguments.plots:
        print(*draw(results, arguments.plots), sep="\n")


if __name__ == "__main__":
    main()
