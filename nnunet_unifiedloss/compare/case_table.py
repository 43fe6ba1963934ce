"""nnU-Net's result folders as one tidy table: one row for each case, structure and metric."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from nnunet_unifiedloss.compare.measurement import MeasuredCase, Progress, measure
from nnunet_unifiedloss.compare.metrics import counts_to_metrics
from nnunet_unifiedloss.results.trainings import (
    DEFAULT_PLANS,
    Training,
    dataset_name,
    find_trainings,
    nnunet_folder,
    read_summary,
    state,
)
from nnunet_unifiedloss.results.validation import COUNTS, ValidatedCase, validated_cases

__all__ = [
    "COLUMNS",
    "EMPTY_CHOICES",
    "REFERENCE_VOLUME",
    "Results",
    "collect",
    "name_methods",
    "select_trainings",
]

COLUMNS = [
    *("dataset", "configuration", "plans", "trainer", "method", "fold"),
    *("case", "label", "metric", "value"),
]
EMPTY_CHOICES = ("worst", "nan")
REFERENCE_VOLUME = "ReferenceVolume"


@dataclass
class Results:
    """Results that nnU-Net's trainings have left.

    Attributes:
        table: One row for each case, structure (label or region) and metric, with the columns of
            :data:`COLUMNS` and one for each parameter of the trainers. ``method`` is what is
            compared: the trainer, with its plans and configuration where there are several.
        trainings: The trainings that it comes from, and the method that each belongs to.
        problems: Cases that are left out, each with the reason and the remedy.
        notes: Anything else that a reader must know.
    """

    table: pd.DataFrame
    trainings: dict[Training, str]
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def select_trainings(
    datasets: Sequence[str | int],
    configurations: Sequence[str],
    trainers: Sequence[str] | None = None,
    plans: Sequence[str] = (DEFAULT_PLANS,),
    folds: Sequence[str | int] = (0, 1, 2, 3, 4),
) -> tuple[list[Training], list[str]]:
    """The trainings to compare: finished on every requested fold of every data set.

    Args:
        datasets: Numbers or names.
        configurations: Names of configurations.
        trainers: Names of trainers, or None for all that finished.
        plans: Identifiers of plans.
        folds: 0 to 4, or ``all``.

    Returns:
        The trainings, sorted, and a note for each trainer that is left out.

    Raises:
        ValueError: A trainer that was asked for, or every one, has not finished; the message says
            which folds are missing, or what there is where nothing has the name.
    """
    results = nnunet_folder("nnUNet_results")
    names = sorted({dataset_name(dataset) for dataset in datasets})
    there = [item for name in names for item in find_trainings(results, name)]
    _check_names(there, {"-tr": trainers or (), "-c": configurations, "-p": plans}, names)
    wanted = {
        (dataset, configuration, identifier, str(fold))
        for dataset in names
        for configuration in configurations
        for identifier in plans
        for fold in folds
    }
    candidates: dict[str, list[Training]] = {trainer: [] for trainer in trainers or ()}
    for training in there:
        place = training.dataset, training.configuration, training.plans, training.fold
        if place in wanted and (trainers is None or training.trainer in candidates):
            candidates.setdefault(training.trainer, []).append(training)
    finished = {
        trainer: [item for item in found if state(item.folder(results)) == "finished"]
        for trainer, found in candidates.items()
    }
    missing = {
        trainer: f"{trainer}: not finished on {_unfinished(wanted, found)}"
        + "".join(_unreadable_summaries(set(candidates[trainer]) - set(found), results))
        for trainer, found in finished.items()
        if len(found) < len(wanted)
    }
    if (trainers is not None and missing) or len(missing) == len(finished):
        raise ValueError(_nothing_to_compare(missing, results, names, configurations, plans))
    chosen = [item for trainer in finished if trainer not in missing for item in finished[trainer]]
    return sorted(chosen), [f"left out: {text}" for text in sorted(missing.values())]


def _check_names(
    there: Sequence[Training], asked: Mapping[str, Sequence[str]], datasets: Sequence[str]
) -> None:
    """Raise a ValueError for names that no training has; they may be misspelt."""
    known = {
        "-tr": {item.trainer for item in there},
        "-c": {item.configuration for item in there},
        "-p": {item.plans for item in there},
    }
    for flag, values in asked.items():
        unknown = [value for value in values if value not in known[flag]]
        if there and unknown:
            raise ValueError(
                f"{flag} {' '.join(unknown)}: nothing was trained with it on "
                f"{', '.join(datasets)}; there is {', '.join(sorted(known[flag]))}"
            )


def _unfinished(wanted: Iterable[tuple[str, ...]], found: Collection[Training]) -> str:
    done = {(item.dataset, item.configuration, item.plans, item.fold) for item in found}
    folds: dict[str, list[str]] = {}
    for dataset, configuration, plans, fold in sorted(set(wanted) - done):
        folds.setdefault(f"{dataset} {configuration} {plans}", []).append(fold)
    return "; ".join(f"{place} fold {' '.join(numbers)}" for place, numbers in folds.items())


def _unreadable_summaries(trainings: Iterable[Training], results: Path) -> Iterator[str]:
    for training in sorted(trainings):
        try:
            read_summary(training.folder(results) / "validation" / "summary.json")
        except FileNotFoundError:
            continue
        except ValueError as error:
            yield f"; {error}"


def _nothing_to_compare(
    missing: Mapping[str, str],
    results: Path,
    datasets: Sequence[str],
    configurations: Sequence[str],
    plans: Sequence[str],
) -> str:
    where = f"{', '.join(datasets)}, -c {' '.join(configurations)}, -p {' '.join(plans)}"
    details = "".join(f"\n  {text}" for text in missing.values()) or f" (looked in {results})"
    return (
        f"no finished training to compare on {where}{details}\n"
        "A training is finished when its validation/summary.json is complete. Remedy: finish it "
        "with nnUNetv2_train … --c, or compare fewer folds (-f) or other trainers (-tr)"
    )


def name_methods(trainings: Sequence[Training]) -> dict[Training, str]:
    """Names of the methods: trainers, with plans and configuration if there are several."""
    several = len({(item.configuration, item.plans) for item in trainings}) > 1
    return {item: item.model if several else item.trainer for item in trainings}


def collect(
    trainings: Sequence[Training],
    *,
    tolerance: float | None = None,
    empty: str = "worst",
    processes: int = 1,
    progress: Progress | None = None,
) -> Results:
    """Read and measure the validation results of trainings.

    nnU-Net's counts are those of its ``summary.json``; distances and lesions are measured on the
    segmentations (:func:`~nnunet_unifiedloss.compare.measurement.measure`).

    Args:
        trainings: Finished trainings.
        tolerance: Tolerance of the normalised surface distance in mm; None for the largest spacing
            of each image.
        empty: Value of a distance where only the reference or only the prediction is empty:
            ``worst``, the diagonal of the image, or ``nan``, left out.
        processes: Number of processes that measure.
        progress: Called with how many cases are measured and how many there are.

    Returns:
        The table and what was left out of it.

    Raises:
        ValueError: ``empty`` or ``tolerance`` make no sense, or a training's folder lacks a file.
    """
    if empty not in EMPTY_CHOICES:
        raise ValueError(f"empty must be one of {', '.join(EMPTY_CHOICES)}, got {empty!r}")
    if tolerance is not None and not (tolerance >= 0 and math.isfinite(tolerance)):
        raise ValueError(f"tolerance must be a distance in mm ≥ 0, got {tolerance}")
    root = nnunet_folder("nnUNet_results")
    methods = name_methods(trainings)
    cases = {training: validated_cases(training, root) for training in trainings}
    segmentations = [case.segmentation for found in cases.values() for case in found]
    measured = measure(segmentations, tolerance=tolerance, processes=processes, progress=progress)
    rows: list[tuple[Any, ...]] = []
    problems: list[str] = []
    for training, found in cases.items():
        place = training.dataset, training.configuration, training.plans, training.trainer
        for case in found:
            values = measured[case.segmentation.prediction]
            problem = values.error or _disagreement(case, values)
            if problem:
                problems.append(problem)
                continue
            rows += [
                (*place, methods[training], training.fold, case.name, *row)
                for row in _metric_rows(case, values, empty)
            ]
    table = pd.DataFrame(rows, columns=COLUMNS).astype({"value": float})
    _check_that_none_is_lost(methods, table, problems)
    notes = []
    if any(training.fold == "all" for training in trainings):
        notes.append("fold all is validated on the cases it was trained on: no estimate for others")
    parameters = _parameter_columns({training.trainer for training in trainings})
    return Results(table.merge(parameters, on="trainer", how="left"), methods, problems, notes)


def _check_that_none_is_lost(
    methods: Mapping[Training, str], table: pd.DataFrame, problems: Sequence[str]
) -> None:
    """Raise a ValueError if a method would drop out because none of its files can be read."""
    for dataset, method in sorted({(item.dataset, name) for item, name in methods.items()}):
        here = (table["dataset"] == dataset) & (table["method"] == method)
        if not here.any():
            reasons = "".join(f"\n  {problem}" for problem in problems[:5])
            raise ValueError(
                f"{method} has no usable case on {dataset}{reasons}\n"
                "Remedy: fix it, or compare other trainers with -tr"
            )


def _disagreement(case: ValidatedCase, measured: MeasuredCase) -> str:
    """Reason why nnU-Net's counts cannot be those of this segmentation; empty without one."""
    for name, counts in case.counts.items():
        for count in ("TP", "FP", "FN"):
            found = measured.metrics[name][count]
            if counts[count] != found:
                return (
                    f"{case.summary}: says {count} = {counts[count]:g} for {name} of {case.name}, "
                    f"but {case.segmentation.prediction} has {found:g}; remedy: nnUNetv2_train … "
                    "--val writes both again"
                )
    return ""


def _metric_rows(
    case: ValidatedCase, measured: MeasuredCase, empty: str
) -> list[tuple[str, str, float]]:
    rows = []
    for name, counts in case.counts.items():
        numbers = {count: float(counts[count]) for count in COUNTS}
        distances = {key: measured.metrics[name][key] for key in ("NSD", "HD95", "ASD")}
        worst = measured.diagonal if empty == "worst" else math.nan
        values = numbers | counts_to_metrics(numbers)
        values |= {key: worst if value == math.inf else value for key, value in distances.items()}
        values |= {
            key: value for key, value in measured.metrics[name].items() if key.startswith("Lesion")
        }
        values[REFERENCE_VOLUME] = numbers["n_ref"] * measured.voxel
        rows += [(name, metric, value) for metric, value in values.items()]
    return rows


def _parameter_columns(trainers: Iterable[str]) -> pd.DataFrame:
    """Loss, parameters and schedule of each trainer, read from its name: one row for each."""
    from nnunet_unifiedloss.training.names import TrainerNameError, parse

    rows = []
    for trainer in sorted(trainers):
        row: dict[str, Any] = {"trainer": trainer}
        try:
            name = parse(trainer)
        except TrainerNameError:
            rows.append(row)
            continue
        row["loss"] = name.loss.__name__
        schedule = {"base": name.base, "lr": name.learning_rate}
        schedule |= {"epochs": name.epochs, "iters": name.iterations}
        row |= {key: value for key, value in schedule.items() if value is not None}
        row |= name.loss.defaults() | name.parameters
        rows.append(row)
    return pd.DataFrame(rows)
