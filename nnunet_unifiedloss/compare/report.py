"""The report of a comparison: one page, tables and figures in a folder."""

from __future__ import annotations

import base64
import contextlib
import importlib.metadata
import io
import json
import math
import os
import platform
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nnunet_unifiedloss.compare import plots
from nnunet_unifiedloss.compare.analysis import ALL_LABELS
from nnunet_unifiedloss.compare.comparison import Comparison
from nnunet_unifiedloss.compare.metrics import METRICS
from nnunet_unifiedloss.compare.verdict import caveats, format_p, short_names, verdict

__all__ = ["as_json", "ranking_rows", "write_report"]

VERSIONS_OF = ("nnunet-unifiedloss", "nnunetv2", "torch", "numpy", "scipy", "pandas", "SimpleITK")
PAGES = ("cases.csv", "summary.csv", "summary.md", "summary.tex", "report.html")
LIST_NAME = ".written_by_compare"
TABLES = ("summary", "differences", "ranking", "overall", "friedman", "strata", "sizes", "empties")


@dataclass(frozen=True)
class ReportFigure:
    """A figure of the report.

    Attributes:
        name: Of its files.
        section: Of the page.
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


def write_report(comparison: Comparison, folder: Path, command: str = "") -> Path:
    """Write the report of a comparison.

    ``report.html`` holds everything in one file; beside it are ``cases.csv`` (every value),
    ``summary.csv``, ``summary.md``, ``summary.tex`` and ``figures/`` (SVG and PNG). All of it is
    made before any of it replaces what an earlier report has left.

    Args:
        comparison: What to report.
        folder: Where to write; made where it does not exist.
        command: The command that made it, to be shown.

    Returns:
        The page.

    Raises:
        OSError: The folder cannot be written to; an earlier report in it is unchanged.
    """
    check_report_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f".draft-{os.getpid()}"
    shutil.rmtree(draft, ignore_errors=True)
    try:
        (draft / "figures").mkdir(parents=True)
        figures = list(_figures(comparison))
        names = [f"{figure.name}.{kind}" for figure in figures for kind in ("svg", "png")]
        (draft / "figures" / LIST_NAME).write_text("\n".join(names), encoding="utf-8")
        for figure in figures:
            (draft / "figures" / f"{figure.name}.svg").write_bytes(figure.svg)
            (draft / "figures" / f"{figure.name}.png").write_bytes(figure.png)
        comparison.results.table.to_csv(draft / "cases.csv", index=False)
        _summary_with_differences(comparison).to_csv(draft / "summary.csv", index=False)
        (draft / "summary.md").write_text(_markdown(comparison), encoding="utf-8")
        (draft / "summary.tex").write_text(_latex(comparison), encoding="utf-8")
        page = _page(comparison, figures, command)
        (draft / "report.html").write_text(page, encoding="utf-8")
        _publish(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder / "report.html"


def check_report_folder(folder: Path) -> None:
    """A ValueError where a report cannot be written because something else is in the way."""
    for place in (*folder.parents, folder, folder / "figures"):
        if place.exists() and not place.is_dir():
            raise ValueError(f"{place} is a file, not a folder for a report; remedy: another -o")


def _publish(draft: Path, folder: Path) -> None:
    """Rename what was made into place, the page last; on any trouble put everything back.

    Figures of an earlier report go, known by the list that it left; what else is in the folder
    stays.
    """
    figures = sorted(path.relative_to(draft) for path in (draft / "figures").iterdir())
    new = [*figures, *(Path(name) for name in PAGES)]
    written = folder / "figures" / LIST_NAME
    old = written.read_text(encoding="utf-8").split("\n") if written.is_file() else []
    stale = [Path("figures", name) for name in old if name and Path("figures", name) not in new]
    for path in new:
        if (folder / path).is_dir():
            raise IsADirectoryError(
                f"{folder / path} is a folder where the report has a file; remedy: another -o"
            )
    (folder / "figures").mkdir(exist_ok=True)
    earlier = draft / "earlier"
    (earlier / "figures").mkdir(parents=True)
    try:
        for path in [*stale, *new]:
            if (folder / path).is_file():
                os.replace(folder / path, earlier / path)
        for path in new:
            os.replace(draft / path, folder / path)
    except BaseException:
        for path in [*stale, *new]:
            with contextlib.suppress(FileNotFoundError):
                os.replace(earlier / path, folder / path)
        raise


def _figures(comparison: Comparison) -> Iterator[ReportFigure]:
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
            except Exception:  # readers raise what they like, and a picture is only a picture
                continue
            text = f"Worst case of {method}."
            yield _rendered(figure, f"worst_{_file_name(method)}{end}", "worst", text + of)
    figure, ax = _new_figure(8, 1.2 + 0.3 * rows)
    try:
        plots.plot_critical_difference(comparison, ax=ax)
    except ValueError:
        return
    blocks = "data sets" if several else "cases"
    text = f"Mean ranks over the {blocks}; a bar joins methods that Nemenyi's test cannot tell."
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


def _summary_with_differences(comparison: Comparison) -> pd.DataFrame:
    key = ["dataset", "metric", "label", "method"]
    differences = comparison.differences.rename(columns={"cases": "paired_cases"})
    table = comparison.summary.merge(differences, on=key, how="left")
    return table.astype(dict.fromkeys(("paired_cases", "better", "worse"), "Int64"))


def ranking_rows(comparison: Comparison, dataset: str) -> list[dict[str, Any]]:
    """The ranking table of a data set, ready to be shown: a row for each method, the best first."""
    primary, label = comparison.settings.primary, comparison.main_label
    chosen = (comparison.ranking["dataset"] == dataset) & (comparison.ranking["metric"] == primary)
    ranking = comparison.ranking[chosen].set_index("method")
    summary = comparison.summary[
        (comparison.summary["dataset"] == dataset) & (comparison.summary["label"] == label)
    ].set_index(["metric", "method"])
    empties = comparison.empties[comparison.empties["dataset"] == dataset]
    counts = empties.groupby("method")[["false_alarm", "missed"]].sum()
    rows = []
    for method in ranking.index:
        is_baseline = method == comparison.settings.baseline
        test = None if is_baseline else comparison.difference(dataset, method)
        rows.append(
            {
                "method": method,
                "baseline": is_baseline,
                "rank": f"{ranking.loc[method, 'mean_rank']:.2f}",
                "first": _percent(float(str(ranking.loc[method, "first"]))),
                "value": _with_interval(summary.loc[(primary, method)], "mean", ".3f"),
                "difference": "–" if test is None else _with_interval(test, "difference", "+.3f"),
                "p": "–" if test is None else format_p(float(test["p_holm"])),
                "effect": "–" if test is None else f"{test['effect']:+.2f}",
                "false_alarms": int(counts.loc[method, "false_alarm"]),
                "missed": int(counts.loc[method, "missed"]),
                "wins": "–" if test is None else f"{test['better']} : {test['worse']}",
                "others": {
                    metric: f"{summary.loc[(metric, method), 'mean']:.3f}"
                    for metric in comparison.settings.metrics
                    if metric != primary and (metric, method) in summary.index
                },
            }
        )
    return rows


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{share:.0%}"


def _with_interval(row: pd.Series[Any], name: str, form: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    interval = "" if math.isnan(low) else f" [{low:{form}}, {high:{form}}]"
    return f"{row[name]:{form}}{interval}"


def _flat_tables(comparison: Comparison) -> Iterator[tuple[str, pd.DataFrame]]:
    """The ranking table of each data set, as text."""
    primary = comparison.settings.primary
    for dataset in comparison.datasets:
        rows = [
            {
                "trainer": row["method"] + (" (baseline)" if row["baseline"] else ""),
                "mean rank": row["rank"],
                "first": row["first"],
                f"{primary} [95 % CI]": row["value"],
                "difference [95 % CI]": row["difference"],
                "p (Holm)": row["p"],
                "effect": row["effect"],
                "better : worse": row["wins"],
                "false alarms": row["false_alarms"],
                "missed": row["missed"],
                **row["others"],
            }
            for row in ranking_rows(comparison, dataset)
        ]
        yield dataset, pd.DataFrame(rows)


def _markdown(comparison: Comparison) -> str:
    parts = [verdict(comparison)]
    for dataset, table in _flat_tables(comparison):
        lines = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy().tolist()]
        rows = "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
        parts += [f"**{dataset}**, {comparison.main_label}", rows]
    found = caveats(comparison)
    if found:
        parts += ["To know before believing it:", "\n".join(f"- {text}" for text in found)]
    return "\n\n".join(parts) + "\n"


def _latex(comparison: Comparison) -> str:
    """The same tables for LaTeX, with the shortened names of the trainers."""
    names = short_names(comparison.methods)
    parts = ["% needs \\usepackage{booktabs} and \\usepackage{graphicx}"]
    for dataset, table in _flat_tables(comparison):
        baseline = comparison.settings.baseline
        table["trainer"] = [
            names[name.split(" ")[0]] + (" (baseline)" if name.split(" ")[0] == baseline else "")
            for name in table["trainer"]
        ]
        rows = table.rename(columns=_escaped).map(lambda cell: _escaped(str(cell)))
        text = rows.to_latex(index=False, escape=False).strip()
        caption = f"{dataset}, {comparison.main_label}: {verdict(comparison)}"
        parts.append(
            "\\begin{table}[htbp]\n\\centering\n"
            f"\\caption{{{_escaped(caption)}}}\n\\label{{tab:{dataset}}}\n"
            f"\\resizebox{{\\linewidth}}{{!}}{{%\n{text}\n}}\n\\end{{table}}"
        )
    return "\n\n".join(parts) + "\n"


def _escaped(text: str) -> str:
    r"""Text for LaTeX.

    Example:
        >>> print(_escaped("Dataset004_A, 95 % – −1"))
        Dataset004\_A, 95 \% -- -1
    """
    special = {char: f"\\{char}" for char in "&%$#_{}"} | {"\\": r"\textbackslash{}"}
    special |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "−": "-"}
    special |= {"<": "$<$", ">": "$>$", "γ": r"$\gamma$"}
    return "".join(special.get(char, char) for char in text)


def as_json(comparison: Comparison) -> str:
    """All tables of a comparison; a missing value is null."""
    tables = {
        name: json.loads(getattr(comparison, name).to_json(orient="records", double_precision=15))
        for name in TABLES
    }
    content = {
        "verdict": verdict(comparison),
        "caveats": caveats(comparison),
        "methods": comparison.methods,
        "settings": asdict(comparison.settings),
    }
    return json.dumps(content | tables, indent=2, ensure_ascii=False)


def _page(comparison: Comparison, figures: Iterable[ReportFigure], command: str) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nnunet_unifiedloss.compare"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["p"] = lambda value: format_p(float(value))
    environment.filters["number"] = _number
    environment.filters["name"] = _breakable
    sections: dict[str, list[ReportFigure]] = {}
    for figure in figures:
        sections.setdefault(figure.section, []).append(figure)
    return environment.get_template("report.html.j2").render(
        comparison=comparison,
        settings=comparison.settings,
        verdict=verdict(comparison),
        caveats=caveats(comparison),
        names=short_names(comparison.methods),
        rankings={dataset: ranking_rows(comparison, dataset) for dataset in comparison.datasets},
        metrics=[METRICS[name] for name in comparison.settings.metrics],
        tables={name: getattr(comparison, name).to_dict("records") for name in TABLES},
        figures=sections,
        tests=int(comparison.differences["p"].notna().sum()),
        versions=_versions(),
        command=command,
    )


def _number(value: float) -> str:
    """A number for a table: three decimals, no sign of a missing one but a dash."""
    return "–" if value is None or math.isnan(value) else f"{value:.3f}"


def _breakable(name: str) -> markupsafe.Markup:
    """A trainer's name that a browser may break where its parts begin."""
    return markupsafe.Markup("_<wbr>").join(name.split("_"))


def _versions() -> dict[str, str]:
    found = {"Python": platform.python_version()}
    for name in VERSIONS_OF:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
