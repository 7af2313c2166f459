"""The table of a bench: figures with intervals, the audit, and which models the best one is not proved better than."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from composir.bench.running import Bench, Measured
from composir.bench.work import Failed
from composir.errors import ComposirError
from composir.evaluation import (
    COMPOSED,
    Result,
    Saved,
    Standing,
    compare,
    measure,
    metric_label,
    protocol_of,
    standings,
)
from composir.evaluation.metrics import lower_is_better
from composir.evaluation.significance import holm

ALPHA = 0.05
"""A model is worse than the best where the adjusted p-value is below."""


@dataclass(frozen=True, slots=True)
class Row:
    """A model on a data set."""

    model: str
    note: str
    seeds: tuple[int | None, ...]
    """Of its runs; None where nothing says one."""
    metrics: dict[str, float]
    """Means over the runs, fractions in [0, 1]."""
    intervals: dict[str, tuple[float, float]]
    """95 % bootstrap intervals over queries of the means."""
    image_only: dict[str, float]
    text_only: dict[str, float]
    """The same model without the sentence, and without the picture; means over the runs."""
    shortcut_free: dict[str, float]
    """The composed figures on the queries that neither of the two solves alone; means over the runs."""
    p_values: dict[str, float]
    """That a difference to the best model of the metric is by chance: two-sided, after Holm; 1 for the best itself."""
    seconds: float
    processor_seconds: float
    """Means over the runs."""
    peak_memory_bytes: int
    peak_gpu_memory_bytes: int | None
    """The largest of the runs."""
    machine: dict[str, Any]
    """Of the first run."""

    def stands_out(self, key: str) -> bool:
        """Return whether the model has the best figure of a metric, or is not significantly worse."""
        return self.p_values[key] >= ALPHA


@dataclass(frozen=True, slots=True)
class Section:
    """The models on one data set, the best first."""

    dataset: str
    num_queries: int
    num_gallery: int
    primary: str
    """The metric that the data set is compared by."""
    keys: tuple[str, ...]
    """The metrics of all rows, without those of single categories and aspects."""
    signature_fields: dict[str, str]
    """What was measured, by field; not the weights, in which the rows differ."""
    rows: tuple[Row, ...]

    @property
    def others(self) -> list[str]:
        """The metrics but the primary one."""
        return [key for key in self.keys if key != self.primary]


@dataclass(frozen=True, slots=True)
class BenchTable:
    """Models on data sets."""

    sections: tuple[Section, ...]
    """By data set; one on which every model failed is not among them."""
    failures: tuple[Failed, ...]

    @property
    def models(self) -> list[str]:
        """Every model, the best of the first data set first, those without any figure last."""
        measured = [row.model for section in self.sections for row in section.rows]
        return list(dict.fromkeys([*measured, *(failure.model for failure in self.failures)]))

    @property
    def machines(self) -> list[dict[str, Any]]:
        """What the rows were measured on, each machine once."""
        found = [row.machine for section in self.sections for row in section.rows]
        return [machine for place, machine in enumerate(found) if machine not in found[:place]]

    def row(self, section: Section, model: str) -> Row | None:
        """Return a model's row, None where it has none."""
        return next((row for row in section.rows if row.model == model), None)

    def without_row(self, section: Section, model: str) -> str:
        """Return what stands where a model has no row: that it failed there, or a dash where it was not asked."""
        failed = any((one.model, one.dataset) == (model, section.dataset) for one in self.failures)
        return "failed" if failed else "–"

    def to_json(self) -> dict[str, Any]:
        """Return the document of ``composir bench --json``, made of plain JSON types."""
        return {
            "datasets": [
                {**asdict(section), "rows": [{**asdict(row), "intervals": _lists(row)} for row in section.rows]}
                for section in self.sections
            ],
            "failures": [asdict(failure) for failure in self.failures],
        }


def make_table(bench: Bench) -> BenchTable:
    """Return the table of what was measured.

    Raises ``ComposirError``, with the files, where results on one data set were not measured by the same rules.
    """
    sections = [_section(name, measured) for name, measured in bench.measured.items() if measured]
    return BenchTable(tuple(sections), bench.failures)


def _section(dataset: str, measured: Mapping[str, Measured]) -> Section:
    groups = {name: one.runs for name, one in measured.items()}
    figures = standings(groups)
    first = next(iter(groups.values()))[0]
    fields = {name: value for name, value in first.signature_fields.items() if name != "weights"}
    keys = tuple(key for key in figures[0].metrics if "." not in key)
    primary = protocol_of(fields["dataset"]).primary
    if primary not in keys:
        raise ComposirError(
            f"its rankings do not tell {metric_label(primary)}, which {fields['dataset']} is compared by",
            file=first.path,
        )
    p_values = _p_values(groups, figures, keys)
    rows = [_row(standing, measured[standing.name], p_values) for standing in figures]
    splits = [ranking.split for ranking in first.rankings[COMPOSED]]
    return Section(
        dataset,
        num_queries=sum(len(split.queries) for split in splits),
        num_gallery=sum(len(split.gallery) for split in splits),
        primary=primary,
        keys=keys,
        signature_fields=fields,
        rows=tuple(sorted(rows, key=lambda row: -row.metrics[primary])),
    )


def _row(standing: Standing, measured: Measured, p_values: Mapping[str, Mapping[str, float]]) -> Row:
    results = [measure(run.rankings, num_resamples=1) for run in measured.runs]  # their intervals are not read
    return Row(
        standing.name,
        measured.note,
        seeds=tuple(run.seed for run in measured.runs),
        metrics=standing.metrics,
        intervals=standing.intervals,
        image_only=_mean([result.baselines["image_only"] for result in results]),
        text_only=_mean([result.baselines["text_only"] for result in results]),
        shortcut_free=_mean([_shortcut_free(result) for result in results]),
        p_values={key: by_model[standing.name] for key, by_model in p_values.items()},
        seconds=float(np.mean([cost.seconds for cost in measured.costs])),
        processor_seconds=float(np.mean([cost.processor_seconds for cost in measured.costs])),
        peak_memory_bytes=max(cost.peak_memory_bytes for cost in measured.costs),
        peak_gpu_memory_bytes=max(cost.peak_gpu_memory_bytes or 0 for cost in measured.costs) or None,
        machine=measured.costs[0].machine,
    )


def _shortcut_free(result: Result) -> dict[str, float]:
    assert result.audit is not None  # a bench ranks both baselines
    return result.audit.shortcut_free


def _mean(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the means of what all of them hold."""
    return {
        key: float(np.mean([one[key] for one in figures])) for key in figures[0] if all(key in one for one in figures)
    }


def _p_values(
    groups: Mapping[str, Sequence[Saved]], figures: Sequence[Standing], keys: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Return, by metric and model, how likely its distance to the metric's best model is by chance.

    The tests are those of ``compare``: sign flips over queries and, where both models have several runs, the t test
    over seeds, of which the larger p-value counts, so that a model is worse only if it is worse on other queries and
    with other seeds. Each is adjusted by Holm for the models that are compared with the best of one metric.
    """
    best_by_key = {
        key: (min if lower_is_better(key) else max)(figures, key=lambda row: row.metrics[key]).name for key in keys
    }
    found: dict[str, dict[str, float]] = {}
    for best in dict.fromkeys(best_by_key.values()):
        own = [key for key in keys if best_by_key[key] == best]
        others = {name: runs for name, runs in groups.items() if name != best}
        differences = compare({best: groups[best], **others}, own).differences if others else ()
        for key in own:
            of_key = [one for one in differences if one.metric == key]
            adjusted = dict(zip((one.b for one in of_key), holm([one.p_value for one in of_key]), strict=True))
            over_seeds = {
                one.b: one.over_seeds.p_value
                for one in of_key
                if one.over_seeds is not None and one.over_seeds.p_value is not None
            }
            for name, p_value in zip(over_seeds, holm(list(over_seeds.values())), strict=True):
                adjusted[name] = max(adjusted[name], p_value)
            found[key] = {best: 1.0, **adjusted}
    return {key: found[key] for key in keys}


def _lists(row: Row) -> dict[str, list[float]]:
    return {key: list(interval) for key, interval in row.intervals.items()}
