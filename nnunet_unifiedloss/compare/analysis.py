"""The tables of a comparison, each computed from the paired scores of the cases."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from scipy import stats

from nnunet_unifiedloss.compare.metrics import METRICS
from nnunet_unifiedloss.compare.statistics import (
    FEWEST_PAIRS,
    bootstrap_means,
    complete,
    friedman_test,
    holm,
    mean_interval,
    paired_test,
    ranks,
    share_first,
)

__all__ = [
    "ALL_LABELS",
    "Settings",
    "difference_table",
    "empties_table",
    "friedman_table",
    "overall_table",
    "paired_scores",
    "ranking_table",
    "size_tables",
    "summary_table",
]

ALL_LABELS = "foreground mean"  # over the structures of a case; nnU-Net's word for it
CASES_PER_STRATUM = 10
MOST_STRATA = 4
STRATUM_COLUMNS = ["stratum", "strata", "cases", "size_low", "size_high"]
STRATUM_COLUMNS += ["difference", "difference_low", "difference_high"]


@dataclass(frozen=True)
class Settings:
    """Settings of a comparison.

    Attributes:
        baseline: The method that the others are compared with.
        metrics: Metrics that are compared; methods are ranked by the first.
        tolerance: Tolerance of the normalised surface distance in mm; None for the largest spacing
            of each image.
        empty: Value of a distance where only one of reference and prediction is empty.
        samples: Number of bootstrap samples.
        seed: Seed of the bootstrap.
    """

    baseline: str
    metrics: tuple[str, ...]
    tolerance: float | None = None
    empty: str = "worst"
    samples: int = 10_000
    seed: int = 0

    @property
    def primary(self) -> str:
        """The metric that methods are ranked by."""
        return self.metrics[0]

    @property
    def bootstrap(self) -> dict[str, int]:
        """The arguments of every bootstrap."""
        return {"samples": self.samples, "seed": self.seed}


def paired_scores(table: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """One row for each data set, label, metric and case; one column for each method.

    A case that is in several folds (splits of one's own) is paired within each and then averaged,
    so that it stays one case. The mean over the structures takes those that every method has a
    value for, so that methods are compared on the same ones.
    """
    index = ["dataset", "label", "metric", "case"]
    selected = table[table["metric"].isin(metrics)]
    scores = selected.set_index([*index, "fold", "method"])["value"].unstack("method")
    repeated = scores.reset_index("fold").index.duplicated(keep=False)
    scores = scores[~repeated | scores.notna().all(axis=1)]
    scores = scores.groupby(level=index).mean()
    if scores.index.unique("label").size < 2:
        return scores
    everywhere = scores[scores.notna().all(axis=1)]
    mean = everywhere.groupby(level=["dataset", "metric", "case"]).mean()
    mean = pd.concat({ALL_LABELS: mean}, names=["label"]).reorder_levels(index)
    return pd.concat([mean, scores])


def _groups(cases: pd.DataFrame) -> Iterator[tuple[dict[str, str], pd.DataFrame]]:
    """The scores of each data set, label and metric, with a row for every case of the data set."""
    for dataset, of_dataset in cases.groupby(level="dataset"):
        names = of_dataset.index.unique("case").sort_values()
        for (label, metric), group in of_dataset.groupby(level=["label", "metric"], sort=False):
            scores = group.droplevel(["dataset", "label", "metric"]).reindex(names)
            yield {"dataset": str(dataset), "metric": str(metric), "label": str(label)}, scores


def summary_table(cases: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """Mean with its bootstrap interval, median and quartiles over the cases with a value."""
    rows = []
    for place, scores in _groups(cases):
        low, high = mean_interval(scores.to_numpy(), **settings.bootstrap)
        described = pd.DataFrame(
            {
                "cases": scores.notna().sum(),
                "undefined": scores.isna().sum(),
                "mean": scores.mean(),
                "mean_low": low,
                "mean_high": high,
                "median": scores.median(),
                "q1": scores.quantile(0.25),
                "q3": scores.quantile(0.75),
            }
        )
        rows.append(described.rename_axis("method").reset_index().assign(**place))
    return _ordered(pd.concat(rows, ignore_index=True))


def difference_table(cases: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """Every method beside the baseline, with Holm's adjustment over all of these comparisons."""
    rows: list[dict[str, Any]] = []
    for place, scores in _groups(cases) if cases.shape[1] > 1 else ():
        baseline = scores[settings.baseline].to_numpy()
        others = scores.drop(columns=settings.baseline)
        paired = others.to_numpy() - baseline[:, None]
        low, high = mean_interval(paired, **settings.bootstrap)
        for index, method in enumerate(others):
            test = paired_test(others[method].to_numpy(), baseline)
            wins, losses = test.larger, test.smaller
            if not METRICS[place["metric"]].higher_is_better:
                wins, losses = losses, wins
            rows.append(
                {
                    **place,
                    "method": method,
                    "cases": test.cases,
                    "difference": test.difference,
                    "difference_low": low[index],
                    "difference_high": high[index],
                    "p": test.p,
                    "effect": test.effect,
                    "better": wins,
                    "worse": losses,
                }
            )
    columns = ["dataset", "metric", "label", "method", "cases", "difference", "difference_low"]
    columns += ["difference_high", "p", "p_holm", "effect", "better", "worse"]
    table = pd.DataFrame(rows, columns=columns)
    table["p_holm"] = holm(table["p"].to_numpy(dtype=float))
    return _ordered(table)


def ranking_table(cases: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """Mean rank over the cases, for each metric on the main label.

    Raises:
        ValueError: A method has no value of the primary metric on any case of a data set.
    """
    labels = cases.index.unique("label")
    label = ALL_LABELS if ALL_LABELS in labels else labels[0]
    rows = []
    for place, scores in _groups(cases):
        if len(labels) > 1 and place["label"] != label:
            continue
        of_cases = ranks(complete(scores.to_numpy()), METRICS[place["metric"]].higher_is_better)
        if not len(of_cases):
            if place["metric"] == settings.primary:
                raise ValueError(_unrankable(scores, place))
            continue
        means = bootstrap_means(of_cases, **settings.bootstrap)
        ranked = pd.DataFrame(
            {
                "method": scores.columns,
                "cases": len(of_cases),
                "mean_rank": of_cases.mean(axis=0),
                "first": share_first(means) if len(of_cases) >= FEWEST_PAIRS else math.nan,
            }
        )
        rows.append(ranked.assign(**place).sort_values("mean_rank", kind="stable"))
    return _ordered(pd.concat(rows, ignore_index=True))


def _unrankable(scores: pd.DataFrame, place: dict[str, str]) -> str:
    silent = [str(method) for method in scores.columns[scores.isna().all()]]
    who = ", ".join(silent) or "every method"
    return (
        f"{place['dataset']}: no case has a value of {place['metric']} for every method, so they "
        f"cannot be ranked by it; without any: {who} (a structure that is absent from reference "
        "and prediction has no value, and none that is not predicted has a precision); remedy: "
        "name another metric first with --metrics, or leave them out with -tr"
    )


def overall_table(dataset_ranks: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """Mean over the data sets of the rank on each, how often first, and Friedman's test.

    The data sets are the unit: they are what is ranked on and resampled (Demšar 2006).

    Args:
        dataset_ranks: Mean rank over the cases, shape (data sets, methods).
        settings: Settings of the comparison.
    """
    of_sets = ranks(dataset_ranks.to_numpy(), higher_is_better=False)
    means = bootstrap_means(of_sets, **settings.bootstrap)
    statistic, p = friedman_test(of_sets)
    return pd.DataFrame(
        {
            "method": dataset_ranks.columns,
            "data_sets": len(of_sets),
            "mean_rank": of_sets.mean(axis=0),
            "first": share_first(means) if len(of_sets) >= FEWEST_PAIRS else math.nan,
            "friedman_statistic": statistic,
            "friedman_p": p,
        }
    )


def friedman_table(cases: pd.DataFrame) -> pd.DataFrame:
    """Friedman's test of all methods, over the cases with a value for each."""
    rows = []
    for place, scores in _groups(cases):
        statistic, p = friedman_test(scores.to_numpy())
        count = len(complete(scores.to_numpy()))
        rows.append({**place, "cases": count, "statistic": statistic, "p": p})
    return _ordered(pd.DataFrame(rows))


def size_tables(
    cases: pd.DataFrame, volumes: pd.Series[float], settings: Settings
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Differences to the baseline of the primary metric by the structure's size, in quantiles."""
    strata: list[dict[str, Any]] = []
    correlations: list[dict[str, Any]] = []
    for place, scores in _groups(cases):
        if place["metric"] != settings.primary or place["label"] == ALL_LABELS:
            continue
        size = volumes.xs((place["dataset"], place["label"]), level=("dataset", "label"))
        size = size[size > 0].reindex(scores.index)
        differences = scores.sub(scores[settings.baseline], axis=0)
        for method in differences.columns.drop(settings.baseline):
            pairs = pd.DataFrame({"size": size, "difference": differences[method]}).dropna()
            where = {**place, "method": method}
            strata += [{**where, **row} for row in _strata(pairs, settings)]
            correlations.append({**where, **_size_correlation(pairs)})
    columns = ["dataset", "metric", "label", "method"]
    return (
        pd.DataFrame(strata, columns=[*columns, *STRATUM_COLUMNS]),
        pd.DataFrame(correlations, columns=[*columns, "cases", "correlation", "p"]),
    )


def _strata(pairs: pd.DataFrame, settings: Settings) -> Iterator[dict[str, Any]]:
    count = min(MOST_STRATA, len(pairs) // CASES_PER_STRATUM)
    if count < 2:
        return
    stratum = pd.qcut(pairs["size"].rank(method="first"), count, labels=False)
    for number, group in pairs.groupby(stratum):
        low, high = mean_interval(group["difference"].to_numpy(), **settings.bootstrap)
        yield {
            "stratum": int(str(number)) + 1,
            "strata": count,
            "cases": len(group),
            "size_low": group["size"].min(),
            "size_high": group["size"].max(),
            "difference": group["difference"].mean(),
            "difference_low": float(low),
            "difference_high": float(high),
        }


def _size_correlation(pairs: pd.DataFrame) -> dict[str, Any]:
    """Spearman's correlation of the difference with the size; its logarithm has the same ranks."""
    constant = pairs["difference"].nunique() < 2 or pairs["size"].nunique() < 2
    if len(pairs) < FEWEST_PAIRS or constant:
        return {"cases": len(pairs), "correlation": math.nan, "p": math.nan}
    result = stats.spearmanr(pairs["size"], pairs["difference"])
    return {"cases": len(pairs), "correlation": result.statistic, "p": result.pvalue}


def empties_table(table: pd.DataFrame) -> pd.DataFrame:
    """Number of cases with an empty reference, an empty prediction, or both."""
    counts = table[table["metric"].isin(["n_ref", "n_pred"])]
    place = ["dataset", "label", "method"]
    wide = counts.set_index([*place, "fold", "case", "metric"])["value"].unstack("metric")
    no_reference, no_prediction = wide["n_ref"] == 0, wide["n_pred"] == 0
    found = pd.DataFrame(
        {
            "both_empty": no_reference & no_prediction,
            "false_alarm": no_reference & ~no_prediction,
            "missed": ~no_reference & no_prediction,
        }
    )
    return found.groupby(level=place).sum().reset_index()


def _ordered(table: pd.DataFrame) -> pd.DataFrame:
    """Move the columns that identify a row to the front."""
    first = [name for name in ("dataset", "metric", "label", "method") if name in table]
    return table[[*first, *table.columns.drop(first)]]
