"""The comparison of trainers: tables of scores, differences, tests and ranks."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from nnunet_unifiedloss.compare.analysis import (
    ALL_LABELS,
    Settings,
    difference_table,
    empties_table,
    friedman_table,
    overall_table,
    paired_scores,
    ranking_table,
    size_tables,
    summary_table,
)
from nnunet_unifiedloss.compare.case_table import (
    REFERENCE_VOLUME,
    Results,
    collect,
    name_methods,
    select_trainings,
)
from nnunet_unifiedloss.compare.curves import training_curves
from nnunet_unifiedloss.compare.measurement import Progress
from nnunet_unifiedloss.compare.metrics import METRICS
from nnunet_unifiedloss.results.trainings import DEFAULT_PLANS
from nnunet_unifiedloss.training.names import loss_of

__all__ = ["Comparison", "analyse", "compare"]


@dataclass
class Comparison:
    """The result of a comparison. All tables are tidy: one row for each data set and method.

    Attributes:
        results: The collected results; ``results.table`` has every value of every case.
        settings: Settings of the comparison.
        methods: The compared methods, the best first.
        cases: Paired scores: one row for each data set, case, label and metric, one column for
            each method.
        summary: Mean with its interval, median and quartiles.
        differences: Paired differences to the baseline with interval, test and effect size.
        ranking: Mean rank over the cases and how often each is first under bootstrap.
        overall: The same over the data sets.
        friedman: Friedman's test over all methods.
        strata: Differences to the baseline by size of the structure.
        sizes: Rank correlation of that difference with the logarithm of the size.
        empties: Where the reference, the prediction or both are empty.
        volumes: Size of each structure in the reference in mm³, by data set, label and case.
        curves: Pseudo-Dice and losses of each epoch.
    """

    results: Results
    settings: Settings
    methods: list[str]
    cases: pd.DataFrame
    summary: pd.DataFrame
    differences: pd.DataFrame
    ranking: pd.DataFrame
    overall: pd.DataFrame
    friedman: pd.DataFrame
    strata: pd.DataFrame
    sizes: pd.DataFrame
    empties: pd.DataFrame
    volumes: pd.Series[float]
    curves: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def datasets(self) -> list[str]:
        """The data sets, sorted."""
        return sorted(self.cases.index.unique("dataset"))

    @property
    def labels(self) -> list[str]:
        """The structures, the mean over them first where there are several."""
        found = list(self.cases.index.unique("label"))
        return sorted(found, key=lambda label: label != ALL_LABELS)

    @property
    def main_label(self) -> str:
        """The label that methods are ranked on: the mean over the structures, or the only one."""
        return self.labels[0]

    def scores(self, dataset: str, metric: str, label: str) -> pd.DataFrame:
        """The values of a metric: one row for each case, one column for each method."""
        index = self.cases.index
        chosen = (
            (index.get_level_values("dataset") == dataset)
            & (index.get_level_values("metric") == metric)
            & (index.get_level_values("label") == label)
        )
        return self.cases[chosen].droplevel(["dataset", "label", "metric"])

    @property
    def dataset_ranks(self) -> pd.DataFrame:
        """Mean rank by the primary metric: one row for each data set, one column a method."""
        return _dataset_ranks(self.ranking, self.settings)[self.methods]

    def labels_of(self, dataset: str) -> list[str]:
        """The structures of a data set, the mean over them first."""
        there = self.cases.index.get_level_values("dataset") == dataset
        found = set(self.cases.index[there].get_level_values("label"))
        return [label for label in self.labels if label in found]

    def main_rows(self, table: pd.DataFrame, dataset: str) -> pd.DataFrame:
        """The rows of a table about the primary metric on the main label."""
        return table[
            (table["dataset"] == dataset)
            & (table["metric"] == self.settings.primary)
            & (table["label"] == self.main_label)
        ]

    def main_row(self, table: pd.DataFrame, dataset: str, method: str) -> pd.Series[Any]:
        """The row of a table about a method's primary metric on the main label."""
        rows = self.main_rows(table, dataset)
        return rows[rows["method"] == method].iloc[0]

    def difference(self, dataset: str, method: str) -> pd.Series[Any]:
        """The row of ``differences`` that a method is judged by."""
        return self.main_row(self.differences, dataset, method)


def compare(
    datasets: Sequence[str | int],
    configurations: Sequence[str] = ("3d_fullres",),
    *,
    trainers: Sequence[str] | None = None,
    plans: Sequence[str] = (DEFAULT_PLANS,),
    folds: Sequence[str | int] = (0, 1, 2, 3, 4),
    baseline: str | None = None,
    metrics: Sequence[str] | None = None,
    tolerance: float | None = None,
    empty: str = "worst",
    strict: bool = False,
    processes: int = 1,
    progress: Progress | None = None,
) -> Comparison:
    """Compare trained models by nnU-Net's validation of them.

    Args:
        datasets: Numbers or names of data sets.
        configurations: Names of configurations.
        trainers: Names of trainers; all that finished if None.
        plans: Identifiers of plans.
        folds: 0 to 4, or ``all``.
        baseline: The trainer that the others are compared with; by default ``nnUNetTrainer``, else
            another one of nnU-Net's own, else the first.
        metrics: Names of :data:`~.metrics.METRICS`, the one to rank by first;
            all of them, ranked by Dice, if None.
        tolerance: Tolerance of the normalised surface distance in mm; None for the largest spacing
            of each image.
        empty: Value of a distance where only the reference or only the prediction is empty:
            ``worst``, the diagonal of the image, or ``nan``, left out.
        strict: Refuse to leave out a case.
        processes: Number of processes that measure.
        progress: Called with how many cases are measured and how many there are.

    Returns:
        The comparison.

    Raises:
        ValueError: An argument makes no sense, nothing finished can be found, no case is common to
            all methods, or (``strict``) a case would have to be left out.
    """
    check_metrics(metrics)
    trainings, notes = select_trainings(datasets, configurations, trainers, plans, folds)
    methods = name_methods(trainings)
    # a wrong name is reported before hours of measuring
    _baseline(baseline, {(item.trainer, method) for item, method in methods.items()})
    results = collect(
        trainings, tolerance=tolerance, empty=empty, processes=processes, progress=progress
    )
    results.notes = notes + results.notes
    comparison = analyse(
        results,
        baseline=baseline,
        metrics=metrics,
        strict=strict,
        tolerance=tolerance,
        empty=empty,
    )
    comparison.curves = training_curves(results.trainings)
    return comparison


def check_metrics(metrics: Sequence[str] | None) -> tuple[str, ...]:
    """The metrics to compare, all of them if None; a ValueError names one that is not known."""
    chosen = tuple(metrics or METRICS)
    unknown = [name for name in chosen if name not in METRICS]
    if unknown:
        raise ValueError(f"unknown metric {', '.join(unknown)}; possible: {', '.join(METRICS)}")
    return tuple(dict.fromkeys(chosen))


def analyse(
    results: Results,
    *,
    baseline: str | None = None,
    metrics: Sequence[str] | None = None,
    strict: bool = False,
    tolerance: float | None = None,
    empty: str = "worst",
    samples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """The statistics of collected results.

    Args:
        results: From :func:`~.results.collect`, or any table of that form.
        baseline: As in :func:`compare`, like what follows.
        metrics: Metrics to compare.
        strict: Refuse to leave out a case.
        tolerance: The tolerance that the results were collected with.
        empty: The treatment of empty cases that the results were collected with.
        samples: Number of bootstrap samples.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: As :func:`compare`.
    """
    chosen = check_metrics(metrics)
    if strict and results.problems:
        raise ValueError("--strict: cases with problems:\n  " + "\n  ".join(results.problems))
    table = _common_cases(results, strict)
    present = [metric for metric in chosen if metric in set(table["metric"])]
    if not present:
        raise ValueError(f"the results have no metric {', '.join(chosen)}")
    methods = sorted(table["method"].unique())
    named = set(zip(results.table["trainer"], results.table["method"], strict=True))
    name = _baseline(baseline, named)
    settings = Settings(name, tuple(present), tolerance, empty, samples, seed)
    if baseline is None and name != "nnUNetTrainer" and len(methods) > 1:
        results.notes.append(f"the baseline is {name}; --baseline names another")
    cases = paired_scores(table, present)
    ranking = ranking_table(cases, settings)
    overall = overall_table(_dataset_ranks(ranking, settings), settings)
    means = _dataset_ranks(ranking, settings).mean()
    order = overall.assign(tie=overall["method"].map(means)).sort_values(["mean_rank", "tie"])
    methods = list(order["method"])
    volumes = paired_scores(table, [REFERENCE_VOLUME]).mean(axis=1).droplevel(["metric"])
    strata, sizes = size_tables(cases, volumes, settings)
    return Comparison(
        results=results,
        settings=settings,
        methods=methods,
        cases=cases[methods],
        summary=summary_table(cases[methods], settings),
        differences=difference_table(cases[methods], settings),
        ranking=ranking,
        overall=order.drop(columns="tie").reset_index(drop=True),
        friedman=friedman_table(cases),
        strata=strata,
        sizes=sizes,
        empties=empties_table(table),
        volumes=volumes,
    )


def _dataset_ranks(ranking: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    primary = ranking[ranking["metric"] == settings.primary]
    return primary.pivot_table(index="dataset", columns="method", values="mean_rank")


def _baseline(asked: str | None, names: Collection[tuple[str, str]]) -> str:
    """The method that the others are compared with, given every trainer and its methods."""
    methods = sorted({method for _, method in names})
    if asked is None:
        host = [pair for pair in names if loss_of(pair[0]) is None]
        return min(host, key=lambda pair: (len(pair[0]), *pair))[1] if host else methods[0]
    if asked in methods:
        return asked
    named = sorted({method for trainer, method in names if trainer == asked})
    if len(named) == 1:
        return named[0]
    found = "several: " + ", ".join(named) if named else "none of " + ", ".join(methods)
    raise ValueError(f"baseline {asked!r} is {found}; remedy: name one of them with --baseline")


def _common_cases(results: Results, strict: bool) -> pd.DataFrame:
    """The rows of cases that every method has, in the same fold; a note counts the others."""
    table = results.table
    methods = table["method"].nunique()
    place = ["dataset", "fold", "case"]
    found = table.groupby(place)["method"].nunique()
    dropped = found[found < methods]
    if len(found) == len(dropped):
        reasons = "".join(f"\n  {problem}" for problem in results.problems[:10])
        raise ValueError(f"no case is common to all of the {methods} methods{reasons}")
    if len(dropped):
        names = ", ".join(f"{case} (fold {fold})" for _, fold, case in dropped.index[:5])
        text = f"{len(dropped)} of {len(found)} cases are not there for every method: {names}" + (
            ", …" if len(dropped) > 5 else ""
        )
        if strict:
            raise ValueError(f"--strict: {text}; remedy: nnUNetv2_train … --val for the others")
        results.notes.append(f"left out: {text}")
    return table[~table.set_index(place).index.isin(dropped.index)]
