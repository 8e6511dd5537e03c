"""What was measured: values by workload, product, model and metric, with medians, percentiles and ratios. Pure."""

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def percentile(values: Sequence[float], q: float) -> float:
    """The smallest value that at least `q` percent of the values do not exceed (nearest rank)."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(q / 100 * len(ordered)) - 1)]


def largest_deviation(values: Sequence[float]) -> float:
    """From the median, as a share of it; 0 for one value."""
    median = statistics.median(values)
    return max(abs(v - median) for v in values) / abs(median) if median else 0.0


@dataclass(frozen=True)
class Key:
    """What a value is of; `model` is empty where no model matters."""

    product: str
    model: str
    metric: str


@dataclass
class Workload:
    """The figures of one workload: from one run, with the conditions of that run."""

    name: str
    conditions: dict[str, Any]
    values: dict[Key, list[float]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def add(self, product: str, model: str, metric: str, value: float) -> None:
        self.values.setdefault(Key(product, model, metric), []).append(value)

    def remark(self, text: str) -> None:
        if text not in self.remarks:
            self.remarks.append(text)

    def median(self, product: str, model: str, metric: str) -> float | None:
        values = self.values.get(Key(product, model, metric))
        return statistics.median(values) if values else None

    def products(self) -> list[str]:
        return list(dict.fromkeys(key.product for key in self.values))

    def models(self) -> list[str]:
        return list(dict.fromkeys(key.model for key in self.values))

    def metrics(self) -> list[str]:
        return list(dict.fromkeys(key.metric for key in self.values))


Figures = dict[str, Workload]


def write_figures(path: Path, figures: Figures) -> None:
    """Workloads that are not among `figures` stay as they were in the file; those that are are replaced whole."""
    kept = read_figures(path) if path.exists() else {}
    kept.update(figures)
    content = {name: _as_json(kept[name]) for name in sorted(kept)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def read_figures(path: Path) -> Figures:
    return {name: _from_json(name, content) for name, content in json.loads(path.read_text()).items()}


def _as_json(workload: Workload) -> dict[str, Any]:
    values = [
        {"product": k.product, "model": k.model, "metric": k.metric, "values": [round(v, 6) for v in values]}
        for k, values in workload.values.items()
    ]
    return {"conditions": workload.conditions, "remarks": workload.remarks, "figures": values}


def _from_json(name: str, content: dict[str, Any]) -> Workload:
    found: Iterable[dict[str, Any]] = content["figures"]
    values = {Key(f["product"], f["model"], f["metric"]): list(f["values"]) for f in found}
    return Workload(name, content["conditions"], values, list(content["remarks"]))
