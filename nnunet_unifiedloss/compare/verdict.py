"""The result in words: a verdict, and its caveats."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pandas as pd

from nnunet_unifiedloss.compare.comparison import Comparison
from nnunet_unifiedloss.compare.metrics import METRICS
from nnunet_unifiedloss.compare.statistics import FEWEST_PAIRS, LEVEL

__all__ = [
    "caveats",
    "describe_metric",
    "format_p",
    "short_names",
    "value_with_interval",
    "verdict",
]


def short_names(methods: list[str]) -> dict[str, str]:
    """Names for tables and figures, without what all methods have in common.

    Example:
        >>> short_names(["nnUNetTrainerDice_5epochs", "nnUNetTrainerFocal_gamma3_5epochs"])
        {'nnUNetTrainerDice_5epochs': 'Dice', 'nnUNetTrainerFocal_gamma3_5epochs': 'Focal_gamma3'}
    """
    parts = [method.removeprefix("nnUNetTrainer").split("_") for method in methods]
    ends = zip(*(reversed(part[1:]) for part in parts), strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda end: len(set(end)) == 1, ends))
    shared = shared if len(methods) > 1 else 0
    short = ["_".join(part[: len(part) - shared]).strip("_") for part in parts]
    # names of nnU-Net's own variants may become empty or begin with a digit
    bare = [not name or name[0].isdigit() for name in short]
    return {
        method: method if is_bare else name
        for method, name, is_bare in zip(methods, short, bare, strict=True)
    }


def format_p(p: float) -> str:
    """A p value for readers.

    Example:
        >>> format_p(0.00004), format_p(0.0321), format_p(float("nan"))
        ('< 0.001', '0.032', '–')
    """
    if math.isnan(p):
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def value_with_interval(row: pd.Series[Any], name: str, form: str = ".3f") -> str:
    """A value of a table and its interval, where it has one.

    Example:
        >>> value_with_interval(pd.Series({"mean": 0.5, "mean_low": 0.4, "mean_high": 0.6}), "mean")
        '0.500 [0.400, 0.600]'
    """
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    interval = "" if math.isnan(low) else f" [{low:{form}}, {high:{form}}]"
    return f"{row[name]:{form}}{interval}"


def verdict(comparison: Comparison) -> str:
    """Name the best method by the primary metric and its certainty, in two sentences."""
    if len(comparison.datasets) == 1:
        return _of_one_data_set(comparison, comparison.datasets[0])
    return _of_several_data_sets(comparison)


def _of_one_data_set(comparison: Comparison, dataset: str) -> str:
    settings = comparison.settings
    best = comparison.methods[0]
    row = comparison.main_row(comparison.summary, dataset, best)
    ranked = comparison.main_row(comparison.ranking, dataset, best)
    ranking = comparison.main_rows(comparison.ranking, dataset)
    tied = set(ranking.loc[ranking["mean_rank"] == ranked["mean_rank"], "method"])
    equal = ", ".join(method for method in comparison.methods[1:] if method in tied)
    first = (
        f"On {dataset} ({row['cases']} cases) {best} ranks best by {settings.primary}, with a mean "
        f"of {value_with_interval(row, 'mean')}" + (f" (the same rank: {equal})" if equal else "")
    )
    if len(comparison.methods) == 1:
        return f"{first}. There is no other method to compare it with."
    share = ranked["first"]
    if math.isnan(share):
        return f"{first}. {_too_few(int(row['cases']))}"
    sure = f"it is first in {share:.0%} of the bootstrap samples"
    if best == settings.baseline:
        return f"{first}; {sure}. {_others_beside_baseline(comparison, dataset)}"
    return f"{first}; {sure}. {_beside_baseline(comparison, dataset, best)}"


def _beside_baseline(comparison: Comparison, dataset: str, best: str) -> str:
    baseline = comparison.settings.baseline
    test = comparison.difference(dataset, best)
    if test["cases"] < FEWEST_PAIRS:
        return _too_few(int(test["cases"]))
    size = value_with_interval(test, "difference", "+.3f")
    numbers = (
        f"difference {size}, Wilcoxon with Holm's adjustment p {_equals(test['p_holm'])}, "
        f"rank-biserial effect {test['effect']:+.2f}"
    )
    if test["p_holm"] < LEVEL:
        return f"Its difference to {baseline} is significant ({numbers})."
    return f"That it differs from {baseline} cannot be concluded ({numbers})."


def _others_beside_baseline(comparison: Comparison, dataset: str) -> str:
    others = [name for name in comparison.methods if name != comparison.settings.baseline]
    tests = [comparison.difference(dataset, method) for method in others]
    worse = [str(test["method"]) for test in tests if test["p_holm"] < LEVEL]
    if not worse:
        return "It is the baseline, and no other method differs from it significantly."
    if len(worse) == len(others):
        return "It is the baseline, and every other method differs from it significantly."
    return f"It is the baseline; significantly different from it: {', '.join(worse)}."


def _of_several_data_sets(comparison: Comparison) -> str:
    table = comparison.dataset_ranks
    best = comparison.methods[0]
    wins = int((table.idxmin(axis=1) == best).sum())
    first = (
        f"Over {len(table)} data sets {best} has the best mean rank by "
        f"{comparison.settings.primary}, {table[best].mean():.2f} of {len(comparison.methods)}, "
        f"and is first on {wins} of them"
    )
    if len(comparison.methods) == 1:
        return f"{first}. There is no other method to compare it with."
    baseline = comparison.settings.baseline
    tests = [
        comparison.difference(dataset, method)
        for dataset in table.index
        for method in ([best] if best != baseline else comparison.methods[1:])
    ]
    better = {str(test["dataset"]) for test in tests if test["p_holm"] < LEVEL}
    where = f"on {', '.join(sorted(better))}" if better else "on none of them"
    who = f"the baseline {baseline}" if best != baseline else "some other method"
    few = (
        f"; {len(table)} data sets are too few for a test over data sets"
        if len(table) < FEWEST_PAIRS
        else ""
    )
    return f"{first}. Its cases differ significantly from those of {who} {where}{few}."


def caveats(comparison: Comparison) -> list[str]:
    """Facts that a reader must know before trusting the numbers: omissions and limits."""
    texts = [*comparison.results.problems, *comparison.results.notes]
    tests = comparison.differences
    for dataset, found in tests.groupby("dataset"):
        cases, made = int(found["cases"].max()), int(tests["p"].notna().sum())
        if cases < FEWEST_PAIRS:
            texts.append(f"{dataset}: {_too_few(cases)}")
        elif 2.0 ** (1 - cases) * made > LEVEL:
            texts.append(
                f"{dataset}: with {cases} cases and Holm's adjustment over {made} comparisons not "
                "even a difference in every case reaches significance; compare fewer metrics "
                "(--metrics) or trainers (-tr)"
            )
    texts += _unpaired(comparison) + _empty_structures(comparison)
    divided = set(comparison.strata["dataset"])
    for dataset in comparison.datasets if len(comparison.methods) > 1 else ():
        if dataset not in divided:
            texts.append(f"{dataset}: too few cases to divide them by the size of the structure")
    return texts


def _unpaired(comparison: Comparison) -> list[str]:
    """Cases that no paired test sees, because only one of two methods has a value."""
    metric, baseline = comparison.settings.primary, comparison.settings.baseline
    texts = []
    for dataset in comparison.datasets:
        for label in comparison.labels_of(dataset):
            defined = comparison.scores(dataset, metric, label).notna()
            for method in comparison.methods:
                count = int((defined[method] != defined[baseline]).sum())
                if count:
                    texts.append(
                        f"{dataset}, {label}: in {count} cases only one of {method} and the "
                        f"baseline has a value of {metric}, because one of them rightly predicted "
                        "nothing, or both differ in what is undefined; these cases are in no "
                        "difference, test or rank, so compare the false alarms too"
                    )
    return texts


def _empty_structures(comparison: Comparison) -> list[str]:
    texts = []
    for _, row in comparison.empties.iterrows():
        where = f"{row['dataset']}, {row['label']}, {row['method']}"
        found = [
            text
            for column, text in (
                ("both_empty", "cases without the structure where none was predicted: no value"),
                ("false_alarm", "cases without the structure where some was predicted: Dice 0"),
                ("missed", "cases where the whole structure was missed: Dice 0"),
            )
            for text in [f"{row[column]} {text}"]
            if row[column]
        ]
        if found:
            texts.append(f"{where}: {'; '.join(found)}")
    return texts


def _too_few(cases: int) -> str:
    smallest = 2.0 ** (1 - cases) if cases else 1.0
    return (
        f"With {cases} case{'s' * (cases != 1)} no difference can be shown to be more than chance: "
        f"even if all agreed, p would be {smallest:.3g}; at least {FEWEST_PAIRS} are needed."
    )


def _equals(p: float) -> str:
    text = format_p(p)
    return text if text.startswith("<") else f"= {text}"


def describe_metric(name: str) -> str:
    """A metric's name with its unit and which way is better, for axes and headings."""
    metric = METRICS[name]
    unit = f", {metric.unit}" if metric.unit else ""
    return f"{name} ({'higher' if metric.higher_is_better else 'lower'} is better{unit})"
