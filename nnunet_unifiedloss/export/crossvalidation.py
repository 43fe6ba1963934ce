"""Metrics of nnU-Net's validation of the folds, with confidence intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_unifiedloss.compare.statistics import mean_interval
from nnunet_unifiedloss.export.models import Model
from nnunet_unifiedloss.results.trainings import read_summary

METRICS = ("Dice", "IoU")


@dataclass(frozen=True)
class Estimate:
    """A mean over cases.

    Attributes:
        mean: The mean over the cases for which nnU-Net gives a number.
        low: Lower end of the interval, NaN where there are fewer than two cases.
        high: Upper end.
        cases: Number of these cases.
    """

    mean: float
    low: float
    high: float
    cases: int

    def __str__(self) -> str:
        if not self.cases:
            return "none"
        interval = "" if math.isnan(self.low) else f" ({self.low:.3f} to {self.high:.3f})"
        return f"{self.mean:.3f}{interval}"


def estimates(model: Model) -> dict[str, dict[str, Estimate]]:
    """Metrics of the validation cases of all exported folds.

    Returns:
        For each label or region, as nnU-Net's ``summary.json`` spells it, an estimate by metric;
        empty where no fold has been validated.
    """
    cases: list[dict[str, Any]] = []
    for fold in validated_folds(model):
        cases += read_summary(_summary(model, fold))["metric_per_case"]
    labels = list(dict.fromkeys(label for case in cases for label in case["metrics"]))
    return {
        label: {
            metric: estimate([case["metrics"][label][metric] for case in cases])
            for metric in METRICS
        }
        for label in labels
    }


def validated_folds(model: Model) -> list[str]:
    """The folds that cross-validate: ``all`` does not, because it is trained on every case."""
    return [fold for fold in model.folds if fold != "all" and _summary(model, fold).is_file()]


def _summary(model: Model, fold: str) -> Path:
    return model.fold(fold) / "validation" / "summary.json"


def estimate(values: list[float]) -> Estimate:
    """Mean and percentile bootstrap interval over cases; missing values (NaN) are left out.

    nnU-Net's metrics are NaN where neither reference nor prediction has the label.

    Example:
        >>> print(estimate([0.5, 0.5, float("nan"), 0.5]), estimate([0.25]))
        0.500 (0.500 to 0.500) 0.250
    """
    known = np.array([value for value in values if not math.isnan(value)])
    if not len(known):
        return Estimate(math.nan, math.nan, math.nan, 0)
    low, high = mean_interval(known, fewest=2)
    return Estimate(float(known.mean()), float(low), float(high), len(known))
