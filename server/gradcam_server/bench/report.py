"""Writes results into a page: tables between two markers, and plots beside the page."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gradcam_server.bench.results import SERVER, Results

BEGIN = "<!-- bench: written by gradcam bench report -->\n"
END = "<!-- end of bench -->"
_CPU = ("server", "front_end", "outside_graph")
_MARKERS = "osD^vP*X"
_Row = Mapping[str, Any]
_Curves = dict[str, list[tuple[float, float]]]


def write(page: Path, files: Sequence[Path]) -> list[Path]:
    """Writes the tables of results into a page, and their plots beside it.

    Args:
        page: A Markdown file; it is created if it does not exist. The text between the markers is
            replaced; without markers, the tables go to the end.
        files: Files of results, in the order of their sections.

    Returns:
        The written files, the page first.

    Raises:
        OSError: A file cannot be read or written.
        ResultsError: A file holds no results.
    """
    sections, plots = [], []
    for file in files:
        results = Results.load(file)
        plot = page.parent / "plots" / f"{file.stem}.svg"
        if draw(results, plot):
            plots.append(plot)
        link = f"![{file.stem}](plots/{plot.name})\n\n" if plot in plots else ""
        sections.append(section(results) + link)
    old = page.read_text("utf-8") if page.exists() else "# Benchmarks\n"
    before, _, rest = old.partition(BEGIN)
    _, _, after = rest.partition(END)
    if before == old:
        before = old.rstrip("\n") + "\n\n"
    page.write_text(before + BEGIN + "\n" + "".join(sections) + END + (after or "\n"), "utf-8")
    return [page, *plots]


def section(results: Results) -> str:
    """Returns a section of Markdown: title, circumstances, tables and notes."""
    tables = {
        "graph": _graph_tables,
        "serving": _serving_tables,
        "overload": lambda found: overload_table(found.rows) + "\n",
    }[results.suite]
    title = f"## {results.suite.capitalize()}: {results.settings['model']}\n\n"
    trial = "**Trial figures, not to be quoted.** " * results.trial
    notes = "".join(f"- {note}\n" for note in results.notes)
    return f"{title}{trial}{_circumstances(results)}\n\n{tables(results)}{notes}\n"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines) + "\n"


def overload_table(rows: Sequence[_Row]) -> str:
    """Returns a Markdown table of goodput under overload (``benchmarks/overload.py``)."""
    text = (
        "| server | payload | load | images/s in time | goodput | without the generator's cores "
        "| refused: ms p50, p99 | with RetryInfo | timed out | generator, cores |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
    )
    for line in rows:
        calls, outcomes = line["calls"], line["outcomes"]
        timeouts = ("DEADLINE_EXCEEDED", "TimeoutError")
        late = sum(outcomes[name]["count"] for name in timeouts if name in outcomes)
        answered = ("answered", *timeouts)
        refused = {name: value for name, value in outcomes.items() if name not in answered}
        cells = []
        for name, value in refused.items():
            latency = value["latency_ms"]
            times = ", ".join(
                "-" if latency[part] is None else f"{latency[part]:.1f}" for part in ("p50", "p99")
            )
            cells.append(f"{name} {value['count'] / calls:.0%}: {times}")
        retry = sum(value["with_retry_info"] for value in refused.values())
        count = sum(value["count"] for value in refused.values())
        goodput = line["goodput"]
        text += (
            f"| {line['server']} | {line['payload']} | {line['load']:g} "
            f"| {line['images_per_s']['median']:.1f} "
            f"| {goodput['median']:.2f} ({goodput['low']:.2f} to {goodput['high']:.2f}) "
            f"| {line['goodput_without_generator']:.2f} | {'; '.join(cells) or 'none'} "
            f"| {f'{retry} of {count}' if count else ''} | {late / calls:.1%} "
            f"| {line['generator_cores']:.2f} |\n"
        )
    return text


def draw(results: Results, path: Path) -> bool:
    """Draws throughput over batch size (graph), or latency over load (serving).

    Returns:
        Whether there was anything to draw.
    """
    curves_of = {"graph": _graph_curves, "serving": _serving_curves}.get(results.suite)
    panels = curves_of(results.rows) if curves_of else {}
    if not any(len(points) > 1 for curves in panels.values() for points in curves.values()):
        return False
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = Figure(figsize=(4 + 3 * len(panels), 4), layout="constrained")
    FigureCanvasSVG(figure)
    for axes, (unit, curves) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        for number, (name, points) in enumerate(curves.items()):
            xs, ys = zip(*sorted(points), strict=True)
            marker = _MARKERS[number % len(_MARKERS)]
            width = 2.5 if name == SERVER else 1.2
            axes.plot(xs, ys, marker=marker, markersize=4, linewidth=width, label=name)
        axes.set(yscale="log", ylabel=unit)
        axes.grid(alpha=0.3, which="both")
        ticks = sorted({x for points in curves.values() for x, _ in points})
        if results.suite == "graph":
            axes.set(xscale="log", xlabel="batch size")
            axes.set_xticks(ticks, [str(size) for size in ticks])
        else:
            axes.set(xlabel="requests/s (Poisson)")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize="small", loc="outside lower center", ncols=3)
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "gradcam"}):  # the same results give the same file
        figure.savefig(path, metadata={"Date": None})
    return True


def _circumstances(results: Results) -> str:
    machine = results.machine
    gpus = "".join(f", {gpu}" for gpu in machine.gpus)
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    return (
        f"{machine.processor}, {machine.cores} cores, {machine.memory_gib:.0f} GiB{gpus}; "
        f"load before the run {machine.load_before}; Python {results.python}, {versions}; "
        f"{results.date[:10]}; `{results.command}`"
    )


def _graph_tables(results: Results) -> str:
    found = ""
    for device in dict.fromkeys(row["device"] for row in results.rows):
        rows = [row for row in results.rows if row["device"] == device]
        found += _graph_table(device, rows)
    return found


def _graph_table(device: str, rows: Sequence[_Row]) -> str:
    sizes = sorted({row["batch_size"] for row in rows})
    cells: dict[str, dict[int, str]] = {}
    for row in rows:
        cells.setdefault(row["subject"], {})[row["batch_size"]] = _ms_per_image(row)
    by_size = {row["batch_size"]: row["roofline_ms"] for row in rows}
    lines = [
        [name, *(of_size.get(size, "") for size in sizes), *_last(rows, name)]
        for name, of_size in cells.items()
    ]
    rooflines = [f"{max(by_size[size].values()):.1f} ({_bound(by_size[size])})" for size in sizes]
    lines.append(["*roofline in float32*", *rooflines, "", "", ""])
    headings = [
        f"milliseconds per image on the {device.upper()}: median (quartiles) at batch size",
        *map(str, sizes),
        "peak memory, MiB",
        "maximum error of logits, maps",
        "cost of a million images",
    ]
    return table(headings, lines)


def _ms_per_image(row: _Row) -> str:
    if row["failure"]:
        return "failed"
    if "ms_per_image" not in row:
        return "wrong"
    found = row["ms_per_image"]
    return f"{found['median']:.1f} ({found['low']:.1f} to {found['high']:.1f})"


def _last(rows: Sequence[_Row], name: str) -> list[str]:
    mine = [row for row in rows if row["subject"] == name]
    timed = [row for row in mine if "ms_per_image" in row]
    checks = [row["check"] for row in mine if "check" in row]
    costs = [row["cost_per_million"] for row in timed if "cost_per_million" in row]
    error = (
        f"{max(check['logits_error'] for check in checks):.0e}, "
        f"{max(check['map_error'] for check in checks):.0e}"
        if checks
        else ""
    )
    memory = f"{max(row['peak_mib'] for row in timed):.0f}" if timed else ""
    return [memory, error, f"{min(costs):.2f}" if costs else ""]


def _bound(roofline: Mapping[str, float]) -> str:
    return max(roofline, key=lambda name: roofline[name])


def _serving_tables(results: Results) -> str:
    loads = [row for row in results.rows if row["kind"] == "load"]
    bare = [row for row in results.rows if row["kind"] == "bare"]
    text = "".join(
        f"The bare graph ({row['compiler']}, batches of {row['batch_size']})"
        f"{' beside ' + row['beside'] if 'beside' in row else ''}: "
        f"{_spread(row['images_per_s'])} images/s.\n\n"
        for row in bare
    )
    headings = ["server", "start to ready, s", "memory, MiB", "cores used when idle"]
    servers = [row for row in results.rows if row["kind"] == "server"]
    text += table(
        headings,
        [
            [
                row["server"],
                _number(row["ready_s"], 1),
                _number(row["memory_mib"], 0),
                _number(row["idle_cores"], 3),
            ]
            for row in servers
        ],
    )
    if compared := [row for row in results.rows if row["kind"] == "comparison"]:
        candidates = [row for row in results.rows if row["kind"] == "candidate"]
        loads_of = dict(zip(results.settings["rates"], results.settings["load"], strict=True))
        return text + _candidate_table(candidates) + _comparison_tables(compared, loads_of)
    for loop, heading in (("closed", "users"), ("open", "requests/s")):
        text += _load_table(heading, [row for row in loads if row["loop"] == loop])
    return text


def _candidate_table(rows: Sequence[_Row]) -> str:
    if not rows:
        return ""
    lines = [
        [
            row["server"],
            f"{row['images_per_s']:.1f}",
            _number(row["p50_ms"], 0),
            "yes" if row["kept"] else "no",
        ]
        for row in rows
    ]
    headings = ["candidate", "images/s in a closed loop", "p50 of one user, ms", "measured on"]
    return "How the peers were chosen:\n\n" + table(headings, lines)


def _comparison_tables(rows: Sequence[_Row], loads: Mapping[float, float]) -> str:
    text = ""
    rows = sorted(
        rows,
        key=lambda row: (
            row["beside"] or "",
            row["payload"],
            row["users"] or 0,
            row["requests_per_s"] or 0,
        ),
    )
    for group, server in dict.fromkeys((row["group"], row["server"]) for row in rows):
        mine = [row for row in rows if (row["group"], row["server"]) == (group, server)]
        for figure, unit in (("images_per_s", "images/s"), ("p50_ms", "p50"), ("p99_ms", "p99")):
            loops = ("closed",) if figure == "images_per_s" else ("closed", "open")
            chosen = [row for row in mine if row["figure"] == figure and row["loop"] in loops]
            if chosen:
                text += _comparison_table(group, unit, chosen, loads)
    return text


def _comparison_table(
    group: str, unit: str, rows: Sequence[_Row], loads: Mapping[float, float]
) -> str:
    peers = list(dict.fromkeys(name for row in rows for name in row["peers"]))
    digits = 1 if unit == "images/s" else 0
    shown = unit if unit == "images/s" else f"{unit} in ms"
    lines = []
    for row in rows:
        ratio = row["ratio"]
        lines.append(
            [
                _load_of(row, loads),
                f"{row['ours']:.{digits}f}",
                *(_number(row["peers"].get(name), digits) for name in peers),
                _number(row["ratio_of_all"], 2),
                f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
                if ratio
                else "",
            ]
        )
    headings = [f"{shown}, peers with {group}", rows[0]["server"], *peers]
    return table([*headings, "ours / best", "of each round (quartiles)"], lines)


def _load_of(row: _Row, loads: Mapping[float, float]) -> str:
    if row["users"]:
        load = f"{row['users']} user{'s' * (row['users'] > 1)}"
    else:
        rate = row["requests_per_s"]
        load = f"{rate:.0f}/s" + (f", load {loads[rate]:g}" if rate in loads else "")
    return ", ".join(filter(None, [row["payload"], load, row["beside"] and "neighbour"]))


def _load_table(heading: str, rows: Sequence[_Row]) -> str:
    if not rows:
        return ""
    headings = [
        *("server", "payload", "call", heading, "images/s", "efficiency"),
        *("p50, ms", "p90", "p99", "p99.9", "failed", "batch"),
        *("CPU of the server, ms", "CPU of its front end", "CPU outside the graph"),
    ]
    lines = []
    for row in rows:
        latency = [_number(row["latency_ms"][name], 1) for name in ("p50", "p90", "p99", "p99.9")]
        failed = sum(row["failures"].values())
        lines.append(
            [
                *(row["server"], row["payload"], row["call"]),
                str(row["users"] or round(row["requests_per_s"], 1)),
                _spread(row["images_per_s"]),
                _number(row["efficiency"] and row["efficiency"]["median"], 2),
                *latency,
                f"{failed} of {row['requests']}" if failed else "0",
                _number(row["mean_batch_size"], 1),
                *(_number(row["cpu"][f"{part}_ms"], 1) for part in _CPU),
            ]
        )
    return table(headings, lines)


def _spread(found: Mapping[str, float]) -> str:
    return f"{found['median']:.1f} ({found['low']:.1f} to {found['high']:.1f})"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _graph_curves(rows: Sequence[_Row]) -> dict[str, _Curves]:
    curves: _Curves = {}
    several = len({row["device"] for row in rows}) > 1
    for row in rows:
        if "ms_per_image" in row:
            name = row["subject"] + f" ({row['device']})" * several
            point = (row["batch_size"], 1e3 / row["ms_per_image"]["median"])
            curves.setdefault(name, []).append(point)
    return {"images/s": curves}


def _serving_curves(rows: Sequence[_Row]) -> dict[str, _Curves]:
    """Returns p50 and p99 over requests/s of the first payload that has open loops."""
    opened = [
        row
        for row in rows
        if row["kind"] == "load"
        and row["loop"] == "open"
        and not row.get("beside")
        and "against" not in row
    ]
    opened = [row for row in opened if row["payload"] == opened[0]["payload"]]
    panels: dict[str, _Curves] = {}
    for name in ("p50", "p99"):
        for row in opened:
            if row["latency_ms"][name] is not None:
                point = (row["requests_per_s"], row["latency_ms"][name])
                curves = panels.setdefault(f"{name} in ms ({row['payload']})", {})
                curves.setdefault(row["server"], []).append(point)
    return panels
