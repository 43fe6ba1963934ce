"""Checks after the suite; each returns one line for every problem."""

from __future__ import annotations

import itertools
import json
import math
import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunet_unifiedloss.results.training_log import read_epochs
from nnunet_unifiedloss.results.trainings import Training, read_json, state, validation_dice

ENDING = ".nii.gz"
KEYS = {
    "folds",
    "dataset_name_or_id",
    "considered_models",
    "ensembling_allowed",
    "all_results",
    "best_model_or_ensemble",
}
KEYS_OF_BEST = {
    "result_on_crossval_pre_pp",
    "result_on_crossval_post_pp",
    "postprocessing_file",
    "some_plans_file",
    "selected_model_or_models",
}


def check_training(training: Training, results: Path, splits: Sequence[dict]) -> list[str]:
    """The training is finished, its losses are finite, and every case is validated."""
    folder = training.folder(results)
    name = f"{training.configuration} fold {training.fold}"
    if state(folder) != "finished":
        return [f"{name}: is not finished: {state(folder)}"]
    problems = check_dice(f"{name}: validation", validation_dice(folder))
    if not (folder / "checkpoint_final.pth").is_file():
        problems.append(f"{name}: has no checkpoint_final.pth")
    logs = "".join(path.read_text() for path in sorted(folder.glob("training_log_*.txt")))
    epochs = list(read_epochs(logs))
    if not epochs:
        problems.append(f"{name}: the log has no epoch")
    for epoch in epochs:
        for loss in ("train_loss", "val_loss"):
            if not math.isfinite(epoch.get(loss, math.nan)):
                problems.append(f"{name}: epoch {epoch['epoch']}: {loss} is {epoch.get(loss)}")
    for case in splits[int(training.fold)]["val"]:
        for ending in (ENDING, ".npz"):
            if not (folder / "validation" / f"{case}{ending}").is_file():
                problems.append(f"{name}: validation has no {case}{ending}")
    return problems


def check_dice(what: str, dice: float | None, above: float | None = None) -> list[str]:
    """Dice must be finite, between 0 and 1, and above that of a constant prediction."""
    if dice is None or not math.isfinite(dice):
        return [f"{what}: Dice is {dice}, not a finite number"]
    if not 0 <= dice <= 1:
        return [f"{what}: Dice is {dice}, which is not between 0 and 1"]
    if above is not None and dice <= above:
        return [f"{what}: Dice is {dice:.3f}, not above the {above:.3f} of a constant prediction"]
    return []


def check_information(
    path: Path, configurations: Sequence[str], trainer: str, plans: str, folds: Sequence[int]
) -> list[str]:
    """``inference_information.json`` is complete, agrees with itself, and its files are there."""
    try:
        information = read_json(path)
    except (OSError, ValueError) as error:
        return [f"{path.name}: {error}"]
    best = information.get("best_model_or_ensemble", {})
    missing = sorted((KEYS - set(information)) | (KEYS_OF_BEST - set(best)))
    if missing:
        return [f"{path.name}: has no {', '.join(missing)}"]
    models = [
        {"plans": plans, "configuration": configuration, "trainer": trainer}
        for configuration in configurations
    ]
    problems = [
        f"{path.name}: {key} is {information[key]}, expected {expected}"
        for key, expected in {
            "folds": list(folds),
            "considered_models": models,
            "ensembling_allowed": True,
        }.items()
        if information[key] != expected
    ]
    problems += _check_results(path.name, information, _identifiers(models, folds))
    return problems + _check_best(path, best, models)


def _identifiers(models: Sequence[dict[str, str]], folds: Sequence[int]) -> set[str]:
    """nnU-Net's names of each model and each pair of them."""
    names = [f"{model['trainer']}__{model['plans']}__{model['configuration']}" for model in models]
    trained = "_".join(map(str, folds))
    pairs = itertools.combinations(names, 2)
    return {*names, *(f"ensemble___{one}___{other}___{trained}" for one, other in pairs)}


def _check_results(name: str, information: dict[str, Any], expected: set[str]) -> list[str]:
    """Every model and every ensemble was considered, and the best one is the best."""
    results = information["all_results"]
    problems = [
        f"{name}: all_results lacks {lacking}" for lacking in sorted(expected - set(results))
    ]
    problems += [f"{name}: all_results has {more}" for more in sorted(set(results) - expected)]
    wrong = [line for key, dice in results.items() for line in check_dice(f"{name}: {key}", dice)]
    if wrong or problems:
        return problems + wrong
    best = information["best_model_or_ensemble"]
    before, after = best["result_on_crossval_pre_pp"], best["result_on_crossval_post_pp"]
    if before != max(results.values()):
        problems.append(f"{name}: the best has Dice {before}, but {max(results.values())} is there")
    problems += check_dice(f"{name}: after postprocessing", after)
    if not problems and after < before - 1e-9:  # nnU-Net keeps a step only if it is better
        problems.append(f"{name}: postprocessing lowers Dice from {before} to {after}")
    selected = [model.get("configuration") for model in best["selected_model_or_models"]]
    winners = [configurations_of(key) for key, dice in results.items() if dice == before]
    if not problems and selected not in winners:
        problems.append(f"{name}: selected is {selected}, but the best is {winners[0]}")
    return problems


def configurations_of(key: str) -> list[str]:
    """The configurations of a model or an ensemble in ``all_results``.

    Example:
        >>> configurations_of("ensemble___T__nnUNetPlans__2d___T__nnUNetPlans__3d_fullres___0_1")
        ['2d', '3d_fullres']
        >>> configurations_of("T__nnUNetPlans__2d")
        ['2d']
    """
    models = key.split("___")[1:3] if key.startswith("ensemble___") else [key]
    return [model.rpartition("__")[2] for model in models]


def _check_best(path: Path, best: dict[str, Any], models: Sequence[dict[str, str]]) -> list[str]:
    """The selected models are among the considered ones; what inference needs can be read."""
    known = [
        {
            "configuration": model["configuration"],
            "trainer": model["trainer"],
            "plans_identifier": model["plans"],
        }
        for model in models
    ]
    selected = best["selected_model_or_models"]
    problems = [
        f"{path.name}: {model} was not considered" for model in selected if model not in known
    ]
    if not selected:
        problems.append(f"{path.name}: no model is selected")
    try:
        functions, arguments = pickle.loads(Path(best["postprocessing_file"]).read_bytes())
        if len(functions) != len(arguments):
            problems.append(
                f"{path.name}: postprocessing has {len(functions)} steps, but arguments "
                f"for {len(arguments)}"
            )
    except Exception as error:  # a pickle raises whatever it likes
        problems.append(f"{path.name}: postprocessing_file cannot be read: {error!r}")
    try:
        json.loads(Path(best["some_plans_file"]).read_text())
    except (OSError, ValueError) as error:
        problems.append(f"{path.name}: some_plans_file cannot be read: {error!r}")
    instructions = path.with_name("inference_instructions.txt")
    text = instructions.read_text() if instructions.is_file() else ""
    for model in selected:
        if f"-tr {model.get('trainer')} -c {model.get('configuration')}" not in text:
            problems.append(f"{instructions.name}: has no command for {model.get('configuration')}")
    return problems


def check_predictions(images: Path, predictions: Path, labels: Iterable[int]) -> list[str]:
    """Each image has a prediction with its geometry and known labels, and not all are empty."""
    cases = {path.name.removesuffix(f"_0000{ENDING}") for path in images.glob(f"*{ENDING}")}
    predicted = {path.name.removesuffix(ENDING) for path in predictions.glob(f"*{ENDING}")}
    problems = [] if cases else [f"{images}: there are no images"]
    problems += [f"predictions: {case} is missing" for case in sorted(cases - predicted)]
    problems += [f"predictions: {case} has no image" for case in sorted(predicted - cases)]
    found: set[int] = set()
    for case in sorted(cases & predicted):
        image = sitk.ReadImage(str(images / f"{case}_0000{ENDING}"))
        prediction = sitk.ReadImage(str(predictions / f"{case}{ENDING}"))
        for what in ("Size", "Spacing", "Origin", "Direction"):
            expected, got = (getattr(item, f"Get{what}")() for item in (image, prediction))
            if not np.allclose(expected, got, atol=1e-5):
                problems.append(
                    f"predictions: {case}: {what} is {got}, that of the image {expected}"
                )
        here = set(np.unique(sitk.GetArrayViewFromImage(prediction)).tolist())
        if unknown := here - {0, *labels}:
            problems.append(f"predictions: {case}: has the labels {sorted(unknown)}")
        found |= here - {0}
    if cases & predicted and not found:
        problems.append("predictions: all are empty")
    return problems


def predicted_labels(dataset: dict[str, Any]) -> set[int]:
    """The labels that nnU-Net may write, by ``dataset.json``; never the ignore label."""
    if "regions_class_order" in dataset:
        return set(dataset["regions_class_order"])
    return set(dataset["labels"].values()) - {dataset["labels"].get("ignore")}


def constant_dice(references: Iterable[Path], dataset: dict[str, Any]) -> float:
    """The mean Dice, as nnU-Net computes it, of calling every voxel foreground.

    For each label or region by itself: no constant prediction is better. With n of N annotated
    voxels in it, that is 2n / (N + n).
    """
    labels = dataset["labels"]
    ignored = labels.get("ignore")
    foreground = [np.atleast_1d(value) for name, value in labels.items() if name != "ignore"]
    foreground = [values for values in foreground if 0 not in values]
    cases = []
    for path in references:
        reference = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        annotated = reference if ignored is None else reference[reference != ignored]
        inside = [int(np.isin(annotated, values).sum()) for values in foreground]
        cases.append([2 * count / (annotated.size + count) for count in inside])
    return float(np.mean(cases))
