"""The figures of a report, drawn as files of the report and as parts of its page."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nnunet_unifiedloss.compare import plots
from nnunet_unifiedloss.compare.analysis import ALL_LABELS
from nnunet_unifiedloss.compare.comparison import Comparison

__all__ = ["ReportFigure", "report_figures"]


@dataclass(frozen=True)
class ReportFigure:
    """A figure of the report.

    Attributes:
        name: Name of its files, without ending.
        section: Section of the page.
        caption: One line below it.
        svg: The drawing.
        png: The same as pixels.
    """

    name: str
    section: str
    caption: str
    svg: bytes
    png: bytes

    @property
    def source(self) -> str:
        """The picture as part of the page: pixels where it is a photograph."""
        kind, content = ("png", self.png) if self.section == "worst" else ("svg+xml", self.svg)
        return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def report_figures(comparison: Comparison) -> Iterator[ReportFigure]:
    """Draw every figure for which the comparison has data."""
    several = len(comparison.datasets) > 1
    rows = len(comparison.methods)
    for dataset in comparison.datasets:
        end, of = (f"_{dataset}", f" {dataset}.") if several else ("", "")
        if rows > 1:
            figure, ax = _new_figure(8, 1.6 + 0.45 * rows)
            plots.plot_differences(comparison, dataset=dataset, ax=ax)
            text = "Paired differences to the baseline with 95 % bootstrap intervals."
            yield _rendered(figure, f"differences{end}", "differences", text + of)
        figure, ax = _new_figure(8, 1.2 + 0.5 * rows)
        plots.plot_cases(comparison, dataset=dataset, ax=ax)
        text = "Every case; box: quartiles and median, orange: mean."
        yield _rendered(figure, f"cases{end}", "cases", text + of)
        labels = [name for name in comparison.labels_of(dataset) if name != ALL_LABELS]
        for number, label in enumerate(labels if rows > 1 else [], start=1):
            figure, ax = _new_figure(8, 4)
            plots.plot_sizes(comparison, dataset=dataset, label=label, ax=ax)
            text = f"Difference to the baseline by size: {label}. Points: cases; bars: strata."
            yield _rendered(figure, f"sizes_{number}_{_file_name(label)}{end}", "sizes", text + of)
        if dataset in set(comparison.curves.get("dataset", ())):
            figure, ax = _new_figure(8, 4)
            plots.plot_curves(comparison, dataset=dataset, ax=ax)
            text = "nnU-Net's pseudo-Dice while training, mean and range over the folds."
            yield _rendered(figure, f"curves{end}", "curves", text + of)
        for method in comparison.methods:
            figure, ax = _new_figure(8, 3.2)
            try:
                plots.plot_worst_case(comparison, method=method, dataset=dataset, ax=ax)
            except Exception:  # readers raise any exception, and a report needs no picture
                continue
            text = f"Worst case of {method}."
            yield _rendered(figure, f"worst_{_file_name(method)}{end}", "worst", text + of)
    figure, ax = _new_figure(8, 1.2 + 0.3 * rows)
    try:
        plots.plot_critical_difference(comparison, ax=ax)
    except ValueError:
        return
    blocks = "data sets" if several else "cases"
    text = (
        f"Mean ranks over the {blocks}; a bar joins methods that Nemenyi's test cannot tell apart."
    )
    yield _rendered(figure, "critical_difference", "ranks", text)


def _new_figure(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _rendered(figure: Figure, name: str, section: str, caption: str) -> ReportFigure:
    contents = []
    for kind in ("svg", "png"):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=120)
        contents.append(buffer.getvalue())
    return ReportFigure(name, section, caption.strip(), *contents)


def _file_name(text: str) -> str:
    return "".join(char if char.isalnum() or char in "._-" else "_" for char in text)
