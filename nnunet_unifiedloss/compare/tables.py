"""The tables of a report as text: for the terminal, Markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import jinja2
import markupsafe
import pandas as pd

from nnunet_unifiedloss.compare.comparison import Comparison
from nnunet_unifiedloss.compare.verdict import (
    caveats,
    format_p,
    short_names,
    value_with_interval,
    verdict,
)

__all__ = [
    "as_json",
    "as_latex",
    "as_markdown",
    "ranking_rows",
    "render",
    "summary_with_differences",
]

TABLES = ("summary", "differences", "ranking", "overall", "friedman", "strata", "sizes", "empties")
_NO_DIFFERENCE = dict.fromkeys(("difference", "p", "effect", "wins"), "–")
_LATEX = str.maketrans(
    {char: f"\\{char}" for char in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"–": "--", "−": "-", "<": "$<$", ">": "$>$", "γ": r"$\gamma$"}
)


def summary_with_differences(comparison: Comparison) -> pd.DataFrame:
    """The summary, beside each row the difference to the baseline."""
    key = ["dataset", "metric", "label", "method"]
    differences = comparison.differences.rename(columns={"cases": "paired_cases"})
    table = comparison.summary.merge(differences, on=key, how="left")
    return table.astype(dict.fromkeys(("paired_cases", "better", "worse"), "Int64"))


def ranking_rows(comparison: Comparison, dataset: str) -> list[dict[str, Any]]:
    """The ranking of a data set as text: one row for each method, the best first."""
    empties = comparison.empties[comparison.empties["dataset"] == dataset]
    counts = empties.groupby("method")[["false_alarm", "missed"]].sum().to_dict("index")
    compared = set(comparison.main_rows(comparison.differences, dataset)["method"])
    rows = []
    for _, ranked in comparison.main_rows(comparison.ranking, dataset).iterrows():
        method = ranked["method"]
        difference = comparison.difference(dataset, method) if method in compared else None
        means = _means(comparison, dataset, method)
        rows.append(
            {
                "method": method,
                "baseline": method == comparison.settings.baseline,
                "rank": f"{ranked['mean_rank']:.2f}",
                "first": "–" if math.isnan(ranked["first"]) else f"{ranked['first']:.0%}",
                "value": means.pop(comparison.settings.primary),
                **(_NO_DIFFERENCE if difference is None else _difference_cells(difference)),
                "false_alarms": counts[method]["false_alarm"],
                "missed": counts[method]["missed"],
                "others": means,
            }
        )
    return rows


def _means(comparison: Comparison, dataset: str, method: str) -> dict[str, str]:
    """The mean of each metric on the main label as text; the primary one with its interval."""
    table = comparison.summary
    table = table[
        (table["dataset"] == dataset)
        & (table["label"] == comparison.main_label)
        & (table["method"] == method)
    ]
    rows = {row["metric"]: row for _, row in table.iterrows()}
    primary = comparison.settings.primary
    texts = {name: f"{row['mean']:.3f}" for name, row in rows.items()}
    texts[primary] = value_with_interval(rows[primary], "mean")
    return {name: texts[name] for name in comparison.settings.metrics if name in texts}


def _difference_cells(test: pd.Series[Any]) -> dict[str, str]:
    return {
        "difference": value_with_interval(test, "difference", "+.3f"),
        "p": format_p(float(test["p_holm"])),
        "effect": f"{test['effect']:+.2f}",
        "wins": f"{test['better']} : {test['worse']}",
    }


def _flat_tables(
    comparison: Comparison, names: Mapping[str, str]
) -> Iterator[tuple[str, pd.DataFrame]]:
    """The ranking table of each data set as text, with the given names of the methods."""
    primary = comparison.settings.primary
    for dataset in comparison.datasets:
        rows = [
            {
                "trainer": names[row["method"]] + (" (baseline)" if row["baseline"] else ""),
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


def render(template: str, **content: Any) -> str:  # noqa: ANN401 (whatever a template takes)
    """Fill a template; only in a page of HTML is text escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nnunet_unifiedloss.compare"),
        autoescape=template.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"p": format_p, "number": _number, "name": _breakable}
    return environment.get_template(template).render(content)


def _number(value: float) -> str:
    """Three decimals, or a dash for a missing value."""
    return "–" if math.isnan(value) else f"{value:.3f}"


def _breakable(name: str) -> markupsafe.Markup:
    """A trainer's name that a browser may break where its parts begin."""
    return markupsafe.Markup("_<wbr>").join(name.split("_"))


def as_markdown(comparison: Comparison) -> str:
    """Verdict, ranking tables and caveats as Markdown."""
    return render(
        "summary.md.j2",
        verdict=verdict(comparison),
        label=comparison.main_label,
        tables=dict(_flat_tables(comparison, {name: name for name in comparison.methods})),
        caveats=caveats(comparison),
    )


def as_latex(comparison: Comparison) -> str:
    """The ranking tables for LaTeX, with the shortened names of the trainers."""
    parts = ["% needs \\usepackage{booktabs} and \\usepackage{graphicx}"]
    for dataset, table in _flat_tables(comparison, short_names(comparison.methods)):
        rows = table.astype(str).rename(columns=_escaped).map(_escaped)
        text = rows.to_latex(index=False, escape=False).strip()
        caption = f"{dataset}, {comparison.main_label}: {verdict(comparison)}"
        parts.append(
            "\\begin{table}[htbp]\n\\centering\n"
            f"\\caption{{{_escaped(caption)}}}\n\\label{{tab:{dataset}}}\n"
            f"\\resizebox{{\\linewidth}}{{!}}{{%\n{text}\n}}\n\\end{{table}}"
        )
    return "\n\n".join(parts) + "\n"


def _escaped(text: str) -> str:
    r"""Escape text for LaTeX (pandas' own escaping leaves symbols such as < and γ as they are).

    Example:
        >>> print(_escaped("Dataset004_A, 95 % – −1"))
        Dataset004\_A, 95 \% -- -1
    """
    return text.translate(_LATEX)


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
