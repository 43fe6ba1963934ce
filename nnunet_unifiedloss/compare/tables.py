"""The tables of a report as text: for the terminal, Markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pandas as pd

from nnunet_unifiedloss.compare.comparison import Comparison
from nnunet_unifiedloss.compare.verdict import caveats, format_p, short_names, verdict

__all__ = ["as_json", "as_latex", "as_markdown", "ranking_rows", "summary_with_differences"]

TABLES = ("summary", "differences", "ranking", "overall", "friedman", "strata", "sizes", "empties")


def summary_with_differences(comparison: Comparison) -> pd.DataFrame:
    """The summary, beside each row the difference to the baseline."""
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


def as_markdown(comparison: Comparison) -> str:
    """Verdict, ranking tables and caveats as Markdown."""
    parts = [verdict(comparison)]
    for dataset, table in _flat_tables(comparison):
        lines = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy().tolist()]
        rows = "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
        parts += [f"**{dataset}**, {comparison.main_label}", rows]
    found = caveats(comparison)
    if found:
        parts += ["To know before believing it:", "\n".join(f"- {text}" for text in found)]
    return "\n\n".join(parts) + "\n"


def as_latex(comparison: Comparison) -> str:
    """The ranking tables for LaTeX, with the shortened names of the trainers."""
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
