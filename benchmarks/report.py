"""The figures as people read them: a Markdown table and a plot."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.figures import Figures, Key, Workload, largest_deviation
from benchmarks.models import TITLES

AT_ONCE, BEFOREHAND = "jobs/s", "jobs/s, queued beforehand"
ROWS_A_SECOND = "rows/s"
BY_VALUE, BY_REFERENCE = "PyFunQ, by value", "PyFunQ, by reference"
PLAIN_CELERY, BARE_FLOW = "plain Celery", "the bare flow"
TWO_PROCESSES = "script, 2 processes"
LOGARITHMIC_FROM = 20


@dataclass(frozen=True)
class Question:
    """What a workload asks; the others are compared with the better of the metrics of `baseline`."""

    title: str
    text: str
    baseline: str = ""
    metrics: tuple[str, ...] = ()


QUESTIONS = {
    "a": Question(
        "single-row jobs",
        "All at once, from the first submit to the last committed result; PyFunQ by `submit_many` in pages of 1,000, "
        "two at a time.",
        PLAIN_CELERY,
        (AT_ONCE, BEFOREHAND),
    ),
    "b": Question(
        "64 concurrent callers",
        "Each submits one row, waits, reads the result and submits the next; PyFunQ in one `AsyncClient`.",
        PLAIN_CELERY,
        (AT_ONCE,),
    ),
    "c": Question(
        "a backlog from Parquet",
        "Rows of 20 columns in row groups of 100,000, until all results are committed in Postgres.",
        TWO_PROCESSES,
        (ROWS_A_SECOND,),
    ),
    "d": Question("idle latency", "One caller, one row at a time: submit, wait, result."),
    "e": Question("latency beside a backlog", "As idle latency, while (c) by value is submitted and worked off."),
    "f": Question(
        "memory of queued jobs",
        "Single-row jobs that nobody works off yet. Postgres: proportional sets of its processes, added.",
    ),
    "g": Question(
        "cost as work grows",
        "Jobs/s of a worker that always has so many jobs queued, beside a producer that replaces them.",
    ),
}


def shown(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 1 else f"{value:.2f}"


def cell(values: Sequence[float]) -> str:
    """The median and, of several values, the largest deviation from it."""
    if not values:
        return "–"
    median = shown(statistics.median(values))
    return median if len(values) == 1 else f"{median} ±{100 * largest_deviation(values):.0f}%"


def times_baseline(workload: Workload, product: str, model: str) -> float | None:
    """The better of the product's medians against the better of the baseline's; None where there is none."""
    question = QUESTIONS[workload.name]
    mine, theirs = (
        max((m for metric in question.metrics if (m := workload.median(name, model, metric)) is not None), default=None)
        for name in (product, question.baseline)
    )
    return mine / theirs if mine is not None and theirs else None


def spread(workload: Workload) -> float | None:
    """How far the median of any depth is from that of the smallest, as a share of it."""
    medians = [m for k in workload.values if (m := workload.median(k.product, k.model, k.metric)) is not None]
    return max(abs(m - medians[0]) for m in medians) / medians[0] if len(medians) > 1 else None


def markdown(figures: Figures) -> str:
    parts = ["# Measured", ""]
    for name in sorted(figures):
        workload, question = figures[name], QUESTIONS[name]
        if not workload.values:
            continue
        parts += [f"## ({name}) {question.title}", "", question.text, ""]
        parts += _rows_of_metrics(workload) if _has_many_metrics(workload) else _rows_of_products(workload)
        parts += [""]
        if name == "g" and (apart := spread(workload)) is not None:
            parts += [f"Farthest from the first row: {100 * apart:.0f}%.", ""]
        parts += [f"{remark}\n" for remark in workload.remarks]
    return "\n".join([*parts, *_runs(figures)])


def _runs(figures: Figures) -> list[str]:
    """What each run was made on, with the workloads that are from it."""
    runs: dict[str, list[str]] = {}
    for name in sorted(figures):
        runs.setdefault(_conditions(figures[name].conditions), []).append(f"({name})")
    lines = ["## Conditions", ""]
    for text, names in runs.items():
        lines += [f"{', '.join(names)}: {text}", ""]
    return lines


def _rows_of_products(workload: Workload) -> list[str]:
    baseline = QUESTIONS[workload.name].baseline
    heads: list[str] = []
    for model in map(_model, workload.models()):
        heads += [f"{model}: {metric}" for metric in workload.metrics()]
        heads += [f"{model}: × {baseline}"] if baseline else []
    lines = [_line(["", *heads]), _line(["---"] + ["---:"] * len(heads))]
    for product in workload.products():
        cells = []
        for model in workload.models():
            cells += [cell(workload.values.get(Key(product, model, metric), ())) for metric in workload.metrics()]
            cells += [_ratio(times_baseline(workload, product, model))] if baseline else []
        lines.append(_line([product, *cells]))
    return lines


def _ratio(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"


def _has_many_metrics(workload: Workload) -> bool:
    products, models = len(workload.products()), len(workload.models())
    return not QUESTIONS[workload.name].baseline and (products == 1 or models == 1)


def _rows_of_metrics(workload: Workload) -> list[str]:
    """For one product or one model, which stands in the corner."""
    products, models = workload.products(), workload.models()
    corner, heads = (products[0], map(_model, models)) if len(products) == 1 else (_model(models[0]), iter(products))
    columns = [(product, model) for product in products for model in models]
    lines = [_line([corner, *heads]), _line(["---"] + ["---:"] * len(columns))]
    return lines + [
        _line([metric, *(cell(workload.values.get(Key(product, model, metric), ())) for product, model in columns)])
        for metric in workload.metrics()
    ]


def _model(name: str) -> str:
    return TITLES.get(name, name).partition(" (")[0]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _conditions(conditions: dict[str, Any]) -> str:
    machine = conditions["machine"]
    rounds = "1 round" if conditions["rounds"] == 1 else f"{conditions['rounds']} rounds"
    on = f"{machine['cpu']}, {machine['cores']} cores, {machine['ram_gib']} GiB, {machine['system']}"
    versions = ", ".join(f"{name} {v}" for name, v in conditions["versions"].items())
    durable = ", ".join(f"{name} {value}" for name, value in conditions["postgres"].items())
    scale = "" if conditions["scale"] == 1 else f" **Scaled by {conditions['scale']:g}: not a measurement.**"
    return (
        f"`{conditions['command']}`, {rounds}, {conditions['date']}; {on}; {versions}; Postgres with {durable}.{scale}"
    )


def plot(figures: Figures, path: Path) -> None:
    """One panel for each workload that a picture helps; nothing is written when there is none."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [name for name in "abcdeg" if name in figures and figures[name].values]
    if not panels:
        return
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(6.4 * columns, 3.4 * rows), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, name in zip(axes.flat, panels, strict=False):
        workload = figures[name]
        axis.set_title(f"({name}) {QUESTIONS[name].title}{_scaled(workload)}", fontsize=10)
        if name == "g":
            _line_panel(axis, workload)
        else:
            _bar_panel(axis, workload, {"c": ROWS_A_SECOND, "d": "p50 ms", "e": "p99 ms"}.get(name, AT_ONCE))
        axis.tick_params(labelsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _scaled(workload: Workload) -> str:
    return "" if workload.conditions["scale"] == 1 else f", scaled by {workload.conditions['scale']:g}"


def _bar_panel(axis: Any, workload: Workload, metric: str) -> None:
    products, models = workload.products(), workload.models()
    height = 0.8 / len(models)
    for i, model in enumerate(models):
        values = [workload.median(product, model, metric) or 0.0 for product in products]
        places = [n + i * height for n in range(len(products))]
        bars = axis.barh(places, values, height=height, label=_model(model))
        axis.bar_label(bars, labels=[shown(v) if v else "" for v in values], fontsize=7, padding=2)
    axis.set_yticks([n + height * (len(models) - 1) / 2 for n in range(len(products))], products)
    axis.invert_yaxis()
    _scale_of_bars(
        axis, [v for key in workload.values if (v := workload.median(key.product, key.model, metric))], metric
    )
    axis.legend(fontsize=7)


def _scale_of_bars(axis: Any, values: Sequence[float], metric: str) -> None:
    """From zero, unless the bars differ too much for that."""
    if max(values) > LOGARITHMIC_FROM * min(values):
        axis.set_xscale("log")
        axis.set_xlim(10 ** math.floor(math.log10(min(values)) - 0.3), max(values) * 4)
        metric += ", logarithmic"
    else:
        axis.set_xlim(0, max(values) * 1.2)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axis.set_xlabel(metric, fontsize=8)


def _line_panel(axis: Any, workload: Workload) -> None:
    metrics = workload.metrics()
    for product in workload.products():
        for model in workload.models():
            values = [workload.median(product, model, metric) or 0.0 for metric in metrics]
            axis.plot(range(len(metrics)), values, marker="o", label=f"{product}, {_model(model)}")
    labels = [metric.removesuffix(", jobs/s").replace(" queued, ", " queued,\n") for metric in metrics]
    axis.set_xticks(range(len(metrics)), labels, fontsize=7)
    axis.set_ylim(0, 1.2 * max(max(line.get_ydata()) for line in axis.lines))
    axis.set_ylabel(AT_ONCE, fontsize=8)
    axis.legend(fontsize=7)
