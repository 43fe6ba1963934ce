"""The report of a comparison: one page, tables and figures in a folder."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from nnunet_unifiedloss._support.versions import installed_versions
from nnunet_unifiedloss.compare.comparison import Comparison
from nnunet_unifiedloss.compare.figures import ReportFigure, report_figures
from nnunet_unifiedloss.compare.metrics import METRICS
from nnunet_unifiedloss.compare.tables import (
    TABLES,
    as_latex,
    as_markdown,
    ranking_rows,
    render,
    summary_with_differences,
)
from nnunet_unifiedloss.compare.verdict import caveats, short_names, verdict

__all__ = ["check_report_folder", "write_report"]

VERSIONS_OF = ("nnunet-unifiedloss", "nnunetv2", "torch", "numpy", "scipy", "pandas", "SimpleITK")
PAGES = ("cases.csv", "summary.csv", "summary.md", "summary.tex", "report.html")
LIST_NAME = ".written_by_compare"


def write_report(comparison: Comparison, folder: Path, command: str = "") -> Path:
    """Write the report of a comparison.

    ``report.html`` holds everything in one file; beside it are ``cases.csv`` (every value),
    ``summary.csv``, ``summary.md``, ``summary.tex`` and ``figures/`` (SVG and PNG). All of it is
    made before any of it replaces what an earlier report has left.

    Args:
        comparison: The comparison to report.
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
        figures = list(report_figures(comparison))
        names = [f"{figure.name}.{kind}" for figure in figures for kind in ("svg", "png")]
        (draft / "figures" / LIST_NAME).write_text("\n".join(names), encoding="utf-8")
        for figure in figures:
            (draft / "figures" / f"{figure.name}.svg").write_bytes(figure.svg)
            (draft / "figures" / f"{figure.name}.png").write_bytes(figure.png)
        comparison.results.table.to_csv(draft / "cases.csv", index=False)
        summary_with_differences(comparison).to_csv(draft / "summary.csv", index=False)
        (draft / "summary.md").write_text(as_markdown(comparison), encoding="utf-8")
        (draft / "summary.tex").write_text(as_latex(comparison), encoding="utf-8")
        page = _page(comparison, figures, command)
        (draft / "report.html").write_text(page, encoding="utf-8")
        _publish(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder / "report.html"


def check_report_folder(folder: Path) -> None:
    """Raise a ValueError if a report cannot be written, before hours of measuring."""
    try:
        for place in (*folder.parents, folder, folder / "figures"):
            if place.exists() and not place.is_dir():
                raise ValueError(
                    f"{place} is a file, not a folder for a report; remedy: another -o"
                )
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        with tempfile.TemporaryDirectory(dir=there):
            pass
    except OSError as error:
        raise ValueError(
            f"-o {folder}: cannot be written to ({error.strerror}); remedy: another -o"
        ) from error


def _publish(draft: Path, folder: Path) -> None:
    """Move the new files into place, the page last; restore the old ones after any error.

    Figures of an earlier report, which it has listed in a file, are removed; other files in the
    folder stay.
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


def _page(comparison: Comparison, figures: Iterable[ReportFigure], command: str) -> str:
    sections: dict[str, list[ReportFigure]] = {}
    for figure in figures:
        sections.setdefault(figure.section, []).append(figure)
    return render(
        "report.html.j2",
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
        versions={"Python": platform.python_version(), **installed_versions(VERSIONS_OF)},
        command=command,
    )
