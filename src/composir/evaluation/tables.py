"""A result and a comparison as tables and sentences, for a terminal."""

from __future__ import annotations

from rich.table import Table

from composir.errors import counted
from composir.evaluation.compare import Comparison
from composir.evaluation.metrics import metric_label
from composir.evaluation.result import Result


def table(result: Result) -> Table:
    """Return the figures as a table in percent: composed with its interval, beside the baselines."""
    fields = result.signature_fields
    gallery = "gallery not listed" if result.num_gallery is None else counted(result.num_gallery, "gallery image")
    view = Table(
        title=f"{fields['dataset']} {fields['split']}: {counted(result.num_queries, 'query', 'queries')}, {gallery}",
        caption=result.signature.replace("|", "  "),
    )
    view.add_column("metric")
    view.add_column("composed", justify="right")
    view.add_column("95 % interval", justify="right")
    for name in result.baselines:
        view.add_column(name.replace("_", " "), justify="right")
    for key, value in result.metrics.items():
        low, high = result.intervals[key]
        view.add_row(
            metric_label(key),
            f"{100 * value:.2f}",
            f"{100 * low:.2f} – {100 * high:.2f}",
            *(f"{100 * metrics[key]:.2f}" for metrics in result.baselines.values()),
            style="bold" if key == result.primary else None,
        )
    return view


def rerank_lines(result: Result) -> list[str]:
    """Return, in a sentence, what re-ranking started from and could reach at most; nothing without it."""
    if result.rerank is None:
        return []
    before = result.rerank.first_stage.get(result.primary)
    label = metric_label(result.primary)
    change = f"; {label} was {100 * before:.2f}" if before is not None else ""
    return [
        f"the best {result.rerank.num_candidates} of each query are re-ranked; {100 * result.rerank.ceiling:.2f} % of "
        f"the targets are among them, the ceiling of recall{change}"
    ]


def audit_lines(result: Result) -> list[str]:
    """Return, in sentences, how much of the split one modality solves alone and what composing adds."""
    audit = result.audit
    if audit is None:
        return []
    is_solved = "target first" if audit.k == 1 else f"target among the best {audit.k}"
    label = metric_label(result.primary)
    gain = audit.gain[result.primary]
    either, picture, sentence, both, rest = (
        f"{count:,} ({count / audit.num_queries:.0%})"
        for count in (
            audit.num_shortcut_solvable,
            audit.num_image_solves,
            audit.num_text_solves,
            audit.num_composition_required,
            audit.num_unresolved,
        )
    )
    lines = [
        f"of {counted(audit.num_queries, 'query', 'queries')}, one modality alone solves ({is_solved}) {either}: "
        f"the picture {picture}, the sentence {sentence}; only both together {both}; neither {rest}"
    ]
    if audit.shortcut_free:
        lines.append(
            f"{label} on the queries that no single modality solves: {100 * audit.shortcut_free[result.primary]:.2f}"
        )
    lines.append(
        f"{label} gained over {gain.over.replace('_', ' ')}: {100 * gain.delta:+.2f} "
        f"({100 * gain.low:+.2f} to {100 * gain.high:+.2f})"
    )
    return lines


def comparison_tables(comparison: Comparison) -> list[Table]:
    """Return the figures of all groups as a table in percent, and one of the differences for each metric."""
    figures = Table(title="percent, 95 % interval over queries", caption=comparison.signature.replace("|", "  "))
    figures.add_column("metric")
    for row in comparison.rows:
        runs = f"\n{len(row.runs)} runs" if len(row.runs) > 1 else ""
        figures.add_column(f"{row.name}{runs}", justify="right", overflow="fold")
    for key in comparison.rows[0].metrics:
        cells = [(row.metrics[key], *row.intervals[key]) for row in comparison.rows]
        figures.add_row(
            metric_label(key), *(f"{_percent(value)}  {_percent(low)}–{_percent(high)}" for value, low, high in cells)
        )
    tables = [figures]
    for metric in dict.fromkeys(difference.metric for difference in comparison.differences):
        view = Table(title=f"differences of {metric_label(metric)}, percentage points")
        view.add_column("", overflow="fold")
        view.add_column("over")
        for heading in ("points", "95 % interval", "p", "p (Holm)"):
            view.add_column(heading, justify="right")
        for one in comparison.differences:
            if one.metric == metric:
                name = f"{one.b} − {one.a}"
                tests = (_span(one.low, one.high), _p(one.p_value), _p(one.p_adjusted))
                view.add_row(name, counted(one.num_queries, "query", "queries"), _percent(one.delta, sign=True), *tests)
                test = one.over_seeds
                if test is not None:
                    tests = (_span(test.low, test.high), _p(test.p_value), _p(test.p_adjusted))
                    view.add_row("", f"{one.num_seeds} runs, {test.test}", "", *tests)
        tables.append(view)
    return tables


def _percent(value: float, *, sign: bool = False) -> str:
    return f"{100 * value:{'+' if sign else ''}.2f}"


def _span(low: float | None, high: float | None) -> str:
    """Return the interval of a difference, whose ends have signs."""
    return "–" if low is None or high is None else f"{_percent(low, sign=True)} to {_percent(high, sign=True)}"


def _p(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}" if value >= 0.0001 else "< 0.0001"
