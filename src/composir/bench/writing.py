"""The table of a bench as files: Markdown, CSV and HTML, all of the same figures."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from composir.bench.table import BenchTable, Row, Section
from composir.evaluation import metric_label, signature_text
from composir.evaluation.html import render, write_html
from composir.files import size_text, write_text

MARKDOWN, CSV, HTML = "bench.md", "bench.csv", "bench.html"
READING = (
    "Percent; in parentheses the 95 % bootstrap interval over queries, of several runs that of their mean. "
    "**Bold**: the best of its column, and every model that is not significantly worse (paired sign flips over "
    "queries and, where both have several runs, the t test over seeds; p of 0.05 after Holm within the column). "
    "Image only and text only are the first figure of the same model without the sentence and without the picture; "
    "shortcut-free is that figure on the queries that neither solves alone. Seconds are those of one run by the "
    "clock, in parentheses the processor's; memory is the most that its process took."
)


def write_table(table: BenchTable, folder: Path) -> dict[str, Path]:
    """Return the files by form after writing all three into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"markdown": folder / MARKDOWN, "csv": folder / CSV, "html": folder / HTML}
    write_text(files["markdown"], to_markdown(table))
    write_text(files["csv"], to_csv(table))
    write_html(to_html(table), files["html"])
    return files


def to_markdown(table: BenchTable) -> str:
    """Return one table of the primary figures of all data sets, then one of each with every figure."""
    parts = [READING]
    head = ["model", *(f"{one.dataset}: {metric_label(one.primary)}" for one in table.sections)]
    parts.append(_markdown_table(head, [_overview(table, model) for model in table.models]))
    for section in table.sections:
        parts.append(
            f"### {section.dataset}\n\n{section.num_queries:,} queries, {section.num_gallery:,} gallery images; "
            f"`{signature_text(section.signature_fields)}`"
        )
        audit = ("image only", "text only", "shortcut-free")
        others = map(metric_label, section.others)
        head = ["model", metric_label(section.primary), *audit, *others, "runs", "seconds", "memory"]
        parts.append(_markdown_table(head, [_markdown_row(section, row) for row in section.rows]))
    notes = {row.model: row.note for section in table.sections for row in section.rows if row.note}
    if notes:
        parts.append("\n".join(f"- {_cell(model)}: {_cell(note)}" for model, note in notes.items()))
    if table.failures:
        failed = [f"- {one.title} on {one.dataset}: {one.message}" for one in table.failures]
        parts.append("Failed:\n\n" + "\n".join(failed))
    parts += [describe(machine) for machine in table.machines]
    return "\n\n".join(parts) + "\n"


def to_csv(table: BenchTable) -> str:
    """Return a line a data set, model and metric, the fractions whole; what is not known is empty."""
    rows = [_csv_row(section, row, key) for section in table.sections for row in section.rows for key in section.keys]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def to_html(table: BenchTable) -> str:
    """Return the page: one file that opens from disk, asks nothing of a network and runs no script."""
    return render(
        "composir.bench",
        table=table,
        size_text=size_text,
        describe=describe,
        signature_text=signature_text,
        seconds_text=seconds_text,
    )


def describe(machine: dict[str, Any]) -> str:
    """Return in a line what was measured on."""
    parts = [
        machine["processor"],
        f"{machine['cores']} cores, {machine['threads']} {'thread' if machine['threads'] == 1 else 'threads'}",
        size_text(machine["memory_bytes"]),
        *([machine["gpu"]] if machine["gpu"] else []),
        f"torch {machine['torch']}",
    ]
    return "Measured on: " + ", ".join(parts) + "."


def seconds_text(row: Row) -> str:
    """Return the time of a run for people: by the clock, and in parentheses the processor's."""
    return " ".join(
        form.format(f"{seconds:.1f}" if seconds < 10 else f"{seconds:,.0f}")
        for form, seconds in (("{}", row.seconds), ("({})", row.processor_seconds))
    )


def figure_text(row: Row, key: str) -> str:
    """Return a figure with its interval, in percent."""
    low, high = row.intervals[key]
    return f"{100 * row.metrics[key]:.2f} ({100 * low:.1f}–{100 * high:.1f})"


def _overview(table: BenchTable, model: str) -> list[str]:
    cells = [_cell(model)]
    for section in table.sections:
        row = table.row(section, model)
        absent = table.without_row(section, model)
        cells.append(_bold(figure_text(row, section.primary), row, section.primary) if row else absent)
    return cells


def _markdown_row(section: Section, row: Row) -> list[str]:
    primary = _bold(figure_text(row, section.primary), row, section.primary)
    others = [_bold(f"{100 * row.metrics[key]:.2f}", row, key) for key in section.others]
    audit = [
        f"{100 * part[section.primary]:.2f}" if section.primary in part else "–"
        for part in (row.image_only, row.text_only, row.shortcut_free)
    ]
    memory = row.peak_gpu_memory_bytes or row.peak_memory_bytes
    return [
        _cell(row.model),
        primary,
        *audit,
        *others,
        str(len(row.seeds)),
        seconds_text(row),
        size_text(memory),
    ]


def _csv_row(section: Section, row: Row, key: str) -> dict[str, object]:
    low, high = row.intervals[key]
    return {
        "dataset": section.dataset,
        "model": row.model,
        "note": row.note,
        "runs": len(row.seeds),
        "metric": key,
        "value": row.metrics[key],
        "low": low,
        "high": high,
        "image_only": row.image_only.get(key),
        "text_only": row.text_only.get(key),
        "shortcut_free": row.shortcut_free.get(key),
        "p_value": row.p_values[key],
        "stands_out": int(row.stands_out(key)),
        "seconds": row.seconds,
        "processor_seconds": row.processor_seconds,
        "peak_memory_bytes": row.peak_memory_bytes,
        "peak_gpu_memory_bytes": row.peak_gpu_memory_bytes,
        "signature": signature_text(section.signature_fields),
    }


def _bold(text: str, row: Row, key: str) -> str:
    return f"**{text}**" if row.stands_out(key) else text


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
