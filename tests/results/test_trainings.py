"""nnU-Net's folders: names, data sets and states of trainings."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from nnunet_unifiedloss.results.trainings import (
    FOLDERS,
    Training,
    dataset_name,
    find_trainings,
    nnunet_folder,
    state,
    validation_dice,
)


@pytest.fixture
def folders(tmp_path: Path, monkeypatch) -> dict[str, Path]:
    paths = {name: tmp_path / name for name in FOLDERS}
    for name, path in paths.items():
        path.mkdir()
        monkeypatch.setenv(name, str(path))
    return paths


def make(folder: Path, *files: str) -> Path:
    (folder / "validation").mkdir(parents=True)
    for name in files:
        (folder / name).write_text("")
    return folder


def test_a_data_set_is_found_in_any_of_the_three_folders(folders):
    for number, folder in enumerate(folders.values(), start=7):
        (folder / f"Dataset{number:03d}_Organ").mkdir()
        assert dataset_name(number) == dataset_name(str(number)) == f"Dataset{number:03d}_Organ"
    assert dataset_name("Dataset123_Elsewhere") == "Dataset123_Elsewhere"


def test_unknown_and_ambiguous_data_sets_are_refused(folders):
    with pytest.raises(ValueError, match=r"data set 4: no folder Dataset004_"):
        dataset_name(4)
    with pytest.raises(ValueError, match=r"'Hippocampus'.*expected a number"):
        dataset_name("Hippocampus")
    (folders["nnUNet_raw"] / "Dataset004_A").mkdir()
    (folders["nnUNet_results"] / "Dataset004_B").mkdir()
    with pytest.raises(ValueError, match=r"Dataset004_A, Dataset004_B.*give the name"):
        dataset_name(4)


def test_missing_folders_are_refused(folders, monkeypatch):
    assert nnunet_folder("nnUNet_results") == folders["nnUNet_results"]
    monkeypatch.setenv("nnUNet_results", str(folders["nnUNet_results"] / "missing"))
    with pytest.raises(
        ValueError, match=r"nnUNet_results=.*missing is not a folder; remedy: mkdir"
    ):
        nnunet_folder("nnUNet_results")
    monkeypatch.delenv("nnUNet_results")
    with pytest.raises(ValueError, match=r"nnUNet_results is not set; remedy: export"):
        nnunet_folder("nnUNet_results")


def test_trainings_are_found_and_ensembles_are_not(folders):
    results = folders["nnUNet_results"]
    trainings = [
        Training("Dataset004_A", "2d", "nnUNetPlans", "nnUNetTrainer", fold)
        for fold in ("0", "all")
    ]
    for training in trainings:
        make(training.folder(results))
    make(results / "Dataset004_A" / "ensembles" / "a__b__c___d__e__f___0_1" / "fold_0")
    make(results / "Dataset004_A" / "a__b__c__d" / "fold_0")
    (results / "Dataset004_A" / "a__b__c").mkdir()
    (results / "Dataset004_A" / "a__b__c" / "fold_0").write_text("a file")
    assert find_trainings(results, "Dataset004_A") == trainings
    assert find_trainings(results, "Dataset005_B") == []


def test_the_state_of_a_training(tmp_path):
    assert state(tmp_path / "missing") == "absent"
    assert state(make(tmp_path / "started", "debug.json")) == "absent"
    for name in ("checkpoint_best.pth", "checkpoint_latest.pth", "checkpoint_final.pth"):
        assert state(make(tmp_path / name, name)) == "interrupted"
    finished = make(tmp_path / "finished", "checkpoint_final.pth")
    summary = finished / "validation" / "summary.json"
    summary.write_text('{"metric_per_case": [')
    assert state(finished) == "interrupted"
    summary.write_text(json.dumps({"mean": {}}))
    assert state(finished) == "interrupted"
    summary.write_text(json.dumps({"metric_per_case": []}))
    assert state(finished) == "finished"


@pytest.mark.parametrize("indent", [4, None])  # as nnU-Net writes it, and rewritten
def test_the_mean_dice_is_that_of_a_complete_validation(tmp_path, indent):
    folder = make(tmp_path / "fold_0")
    summary = folder / "validation" / "summary.json"
    assert validation_dice(folder) is None
    metrics = {"Dice": 0.1, "IoU": 0.2}
    case = {"metrics": {"1": metrics}, "prediction_file": "a.nii.gz"}
    content = {"foreground_mean": {"Dice": 0.75}, "mean": {}, "metric_per_case": [case] * 99}
    text = json.dumps(content, indent=indent, sort_keys=True)
    for end in range(0, len(text), 211):
        summary.write_text(text[:end])
        assert validation_dice(folder) is None, text[:end]
    summary.write_text(text)
    assert validation_dice(folder) == 0.75
    summary.write_text(text.replace("0.75", "NaN"))
    assert math.isnan(validation_dice(folder))
