"""From nnU-Net's folders to the table: what is read, measured, kept and refused."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nnunet_unifiedloss.compare import measurement
from nnunet_unifiedloss.compare.case_table import COLUMNS, collect, select_trainings
from nnunet_unifiedloss.compare.metrics import METRICS, Structure, structure_metrics
from tests.helpers import results_folder
from tests.helpers.results_folder import (
    PLAIN,
    REGIONS,
    TWO_LABELS,
    ResultsFolder,
    ball,
    lesions,
    shifted,
)


@pytest.fixture
def made(tmp_path: Path, monkeypatch) -> ResultsFolder:
    return make(tmp_path, monkeypatch, TWO_LABELS)


def make(tmp_path, monkeypatch, labels, cases=4) -> ResultsFolder:
    folder = ResultsFolder(tmp_path, labels)
    for name, value in folder.environment().items():
        monkeypatch.setenv(name, value)
        folder.path(name)
    folder.add_cases(lesions(cases))
    return folder


def add(folder: ResultsFolder, trainer: str, steps: int = 1, fold: int | str = 0, cases=range(4)):
    names = [f"case_{number:03d}" for number in cases]
    return folder.add_training(trainer, names, shifted(steps), fold)


def values(table: pd.DataFrame, **place) -> pd.Series:
    for column, value in place.items():
        table = table[table[column] == value]
    return table.set_index("metric")["value"]


def test_every_value_agrees_with_nnunet_and_with_the_masks(made):
    training = add(made, "nnUNetTrainer")
    results = collect([training])
    assert list(results.table.columns[: len(COLUMNS)]) == COLUMNS
    assert not results.problems
    summary = json.loads((made.validation(training) / "summary.json").read_text())
    for entry in summary["metric_per_case"]:
        name = Path(entry["prediction_file"]).name.removesuffix(".nii.gz")
        reference = results_folder.read(made.reference(name))
        prediction = results_folder.read(made.validation(training) / f"{name}.nii.gz")
        for label, value in (("edema", 1), ("core", 2)):
            found = values(results.table, case=name, label=label)
            expected = {
                key: np.nan if number is None else number
                for key, number in entry["metrics"][str(value)].items()
            }
            assert found[list(expected)].to_dict() == pytest.approx(expected, nan_ok=True)
            structures = [
                Structure(mask == value, made.spacing) for mask in (reference, prediction)
            ]
            measured = structure_metrics(*structures, tolerance=3)  # the largest step
            assert found[list(measured)].to_dict() == pytest.approx(measured)
            assert found["ReferenceVolume"] == 3 * np.sum(reference == value)


def test_regions_and_ignore_label(tmp_path, monkeypatch):
    folder = make(tmp_path, monkeypatch, REGIONS, cases=0)
    reference = ball((12, 24, 24), (6, 12, 12), 5).astype(np.uint8)
    reference[ball((12, 24, 24), (6, 12, 12), 3)] = 2
    reference[:3] = 3
    folder.add_cases({"case_000": reference})

    def predict(reference, number):
        found = np.where(reference == 3, 1, reference)  # wrong only where nothing counts
        return np.roll(found, 1, axis=2)

    results = collect([folder.add_training("nnUNetTrainer", ["case_000"], predict)])
    assert not results.problems
    counted = reference != 3
    moved = predict(reference, 0)
    for label, members in (("whole", (1, 2)), ("core", (2,))):
        expected, found = (np.isin(labels, members) & counted for labels in (reference, moved))
        row = values(results.table, label=label)
        assert row["n_ref"] == expected.sum()
        dice = 2 * np.sum(expected & found) / (expected.sum() + found.sum())
        assert row["Dice"] == pytest.approx(dice)
        structures = [
            Structure(np.isin(labels, members), folder.spacing, ~counted)
            for labels in (reference, moved)
        ]
        assert row["HD95"] == pytest.approx(structure_metrics(*structures, 3)["HD95"])


def test_a_trainers_parameters_are_columns(made):
    trainings = [
        add(made, "nnUNetTrainer"),
        add(made, "nnUNetTrainerUnifiedFocal_delta0.7_NoMirroring_lr0.02_5epochs"),
    ]
    rows = collect(trainings).table.groupby("trainer").first()
    ours = rows.loc[trainings[1].trainer]
    assert (ours["loss"], ours["delta"], ours["gamma"]) == ("UnifiedFocalLoss", 0.7, 0.5)
    assert (ours["base"], ours["lr"], ours["epochs"]) == ("NoMirroring", 0.02, 5)
    assert pd.isna(rows.loc["nnUNetTrainer", "loss"])


@pytest.mark.parametrize("empty", ["worst", "nan"])
def test_empty_references_and_predictions(tmp_path, monkeypatch, empty):
    folder = make(tmp_path, monkeypatch, PLAIN, cases=0)
    nothing = np.zeros((6, 10, 10), dtype=np.uint8)
    something = ball((6, 10, 10), (3, 5, 5), 2).astype(np.uint8)
    folder.add_cases({"none": nothing, "alarm": nothing, "missed": something})
    predictions = {"none": nothing, "alarm": something, "missed": nothing}
    names = list(predictions)
    training = folder.add_training(
        "nnUNetTrainer", names, lambda reference, number: predictions[names[number]]
    )
    table = collect([training], empty=empty).table
    none, alarm, missed = (values(table, case=name) for name in names)
    assert none[list(METRICS)].isna().all()
    diagonal = math.hypot(6 * 3, 10, 10) if empty == "worst" else math.nan
    for one in (alarm, missed):
        assert one["Dice"] == one["NSD"] == one["LesionF1"] == 0
        assert one[["HD95", "ASD"]].tolist() == pytest.approx([diagonal] * 2, nan_ok=True)
    assert math.isnan(alarm["Sensitivity"])
    assert math.isnan(alarm["RVE"])
    assert math.isnan(missed["Precision"])


def test_measurements_are_kept(made, monkeypatch):
    trainings = [add(made, "nnUNetTrainer", 1), add(made, "nnUNetTrainerDice", 2)]
    read: list[Path] = []
    real = measurement.read_label_image

    def count(path, labels):
        read.append(path)
        return real(path, labels)

    monkeypatch.setattr(measurement, "read_label_image", count)
    first = collect(trainings).table
    # each reference once, though two trainers predicted it
    assert len(read) == 4 + 8
    read.clear()
    pd.testing.assert_frame_equal(collect(trainings).table, first)
    assert read == []

    changed = made.validation(trainings[0]) / "case_002.nii.gz"
    reference = results_folder.read(made.reference("case_002"))
    results_folder.write(changed.parent, "case_002", np.roll(reference, 3, 2), made.spacing)
    made.write_summary(trainings[0])
    second = collect(trainings).table
    assert read == [made.reference("case_002"), changed]
    place = {"case": "case_002", "label": "edema"}
    dice = [values(table, trainer="nnUNetTrainer", **place)["Dice"] for table in (first, second)]
    assert dice[1] < dice[0]

    read.clear()
    collect(trainings, tolerance=1)
    assert len(read) == 12  # another tolerance is another measurement


def test_an_interrupted_measurement_keeps_what_it_has(made, monkeypatch):
    training = add(made, "nnUNetTrainer")
    done = []

    def interrupt(finished: int, total: int) -> None:
        done.append(finished)
        if finished == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect([training], progress=interrupt)
    done.clear()
    collect([training], progress=lambda finished, total: done.append((finished, total)))
    assert done == [(2, 4), (3, 4), (4, 4)]


def test_a_damaged_cache_is_measured_again(made):
    training = add(made, "nnUNetTrainer")
    first = collect([training]).table
    cache = made.validation(training) / measurement.CACHE_NAME
    cache.write_text(cache.read_text()[:100])
    pd.testing.assert_frame_equal(collect([training]).table, first)
    json.loads(cache.read_text())


def test_several_processes_measure_the_same(made):
    trainings = [add(made, "nnUNetTrainer", 1), add(made, "nnUNetTrainerDice", 2)]
    together = collect(trainings, processes=2).table
    for training in trainings:
        (made.validation(training) / measurement.CACHE_NAME).unlink()
    pd.testing.assert_frame_equal(collect(trainings).table, together)


def test_one_bad_case_loses_no_other(made):
    training = add(made, "nnUNetTrainer")
    folder = made.validation(training)
    cut = folder / "case_000.nii.gz"
    cut.write_bytes(cut.read_bytes()[:50])
    reference = results_folder.read(made.reference("case_001"))
    results_folder.write(folder, "case_001", reference, (1.0, 1.0, 1.0))
    results_folder.write(folder, "case_002", reference[:-1], made.spacing)
    results = collect([training])
    assert results.table["case"].unique().tolist() == ["case_003"]
    assert len(results.problems) == 3
    for name, reason in (
        ("case_000", "cannot be read"),
        ("case_001", r"spacing \(1, 1, 1\) instead of \(3, 1, 1\)"),
        ("case_002", r"shape \(11, 24, 24\) instead of \(12, 24, 24\)"),
    ):
        (problem,) = [text for text in results.problems if f"{name}.nii.gz" in text]
        assert re.search(reason, problem), problem
        assert "remedy: predict this case again" in problem


def test_a_missing_reference_is_named(made):
    training = add(made, "nnUNetTrainer")
    made.reference("case_001").unlink()
    (problem,) = collect([training]).problems
    assert "case_001.nii.gz: there is no such file; remedy: restore this reference" in problem


def test_references_may_be_in_the_raw_data(made):
    training = add(made, "nnUNetTrainer")
    raw = made.path("nnUNet_raw") / "labelsTr"
    raw.mkdir()
    for path in list(made.reference("case_000").parent.iterdir()):
        os.rename(path, raw / path.name)
    assert not collect([training]).problems


def test_a_summary_of_other_predictions_is_not_believed(made):
    training = add(made, "nnUNetTrainer")
    reference = results_folder.read(made.reference("case_001"))
    results_folder.write(made.validation(training), "case_001", reference, made.spacing)
    (problem,) = collect([training]).problems
    assert "case_001" in problem
    assert "--val writes both again" in problem


def test_trainers_that_finished_are_chosen(made):
    for fold in (0, 1):
        add(made, "nnUNetTrainer", fold=fold)
        unfinished = add(made, "nnUNetTrainerDice", fold=fold)
    (made.validation(unfinished) / "summary.json").unlink()
    chosen, notes = select_trainings([4], ["3d_fullres"], folds=[0, 1])
    assert {(item.trainer, item.fold) for item in chosen} == {
        ("nnUNetTrainer", "0"),
        ("nnUNetTrainer", "1"),
    }
    assert notes == [
        "left out: nnUNetTrainerDice: not finished on Dataset004_Made 3d_fullres nnUNetPlans fold 1"
    ]
    chosen, notes = select_trainings(["Dataset004_Made"], ["3d_fullres"], folds=[0])
    assert len(chosen) == 2
    assert not notes
    with pytest.raises(ValueError, match=r"nnUNetTrainerDice: not finished .* fold 1"):
        select_trainings([4], ["3d_fullres"], ["nnUNetTrainer", "nnUNetTrainerDice"], folds=[0, 1])


def test_a_truncated_summary_is_named(made):
    training = add(made, "nnUNetTrainer")
    summary = made.validation(training) / "summary.json"
    summary.write_text(summary.read_text()[:200])
    with pytest.raises(ValueError, match=r"summary\.json: not readable as JSON .*remedy"):
        select_trainings([4], ["3d_fullres"], folds=[0])


def test_nothing_finished(made):
    with pytest.raises(ValueError, match=r"no finished training .*2d.*\n.*nnUNetv2_train"):
        select_trainings([4], ["2d"], folds=[0])
    add(made, "nnUNetTrainer")
    with pytest.raises(ValueError, match=r"fold 1 2 3 4\n.*fewer folds"):
        select_trainings([4], ["3d_fullres"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"empty": "zero"}, "empty must be one of worst, nan, got 'zero'"),
        ({"tolerance": -1.0}, "tolerance must be a distance in mm ≥ 0, got -1"),
        ({"tolerance": math.nan}, "tolerance must be a distance"),
    ],
)
def test_invalid_settings(made, arguments, message):
    with pytest.raises(ValueError, match=message):
        collect([add(made, "nnUNetTrainer")], **arguments)


def test_fold_all_comes_with_a_warning(made):
    results = collect([add(made, "nnUNetTrainer", fold="all")])
    assert "trained on" in results.notes[0]


def test_a_folder_that_cannot_be_written_is_no_obstacle(made, monkeypatch):
    training = add(made, "nnUNetTrainer")

    def refuse(path, content):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(measurement, "write_atomically", refuse)
    assert not collect([training]).table.empty
    assert not (made.validation(training) / measurement.CACHE_NAME).exists()


def test_a_data_set_named_twice_counts_once(made):
    add(made, "nnUNetTrainer", fold=0)
    add(made, "nnUNetTrainer", fold=1)
    add(made, "nnUNetTrainerDice", fold=0)
    chosen, notes = select_trainings([4, "004", "Dataset004_Made"], ["3d_fullres"], folds=[0, 1])
    assert {item.trainer for item in chosen} == {"nnUNetTrainer"}
    assert "nnUNetTrainerDice" in notes[0]


def test_the_cache_of_a_fold_is_read_once(made, monkeypatch):
    training = add(made, "nnUNetTrainer")
    collect([training])
    read: list[Path] = []
    real = measurement._read_cache
    monkeypatch.setattr(measurement, "_read_cache", lambda path: read.append(path) or real(path))
    collect([training])
    assert len(read) == 1


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("plans.json", {}, "plans.json: has no 'image_reader_writer'"),
        ("dataset.json", {"file_ending": ".nii.gz"}, "dataset.json: has no 'labels'"),
        ("dataset.json", None, "dataset.json: there is no such file"),
        ("summary.json", [{}], "KeyError: 'prediction_file'"),
        ("summary.json", [{"prediction_file": "a", "metrics": {"1": {}, "2": {}}}], "counts"),
        ("summary.json", [3], "is not as nnU-Net writes it"),
    ],
)  # fmt: skip
def test_files_that_nnunet_did_not_write_are_named(made, name, change, message):
    training = add(made, "nnUNetTrainer")
    validation = made.validation(training)
    path = validation / name if name == "summary.json" else validation.parent.parent / name
    if change is None:
        path.unlink()
    else:
        content = {"metric_per_case": change} if name == "summary.json" else change
        path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        collect([training])
    assert "remedy" in str(raised.value)


@pytest.mark.parametrize("cases", [[1, 2], {"case_000.nii.gz": 3}])
def test_a_cache_of_something_else_is_measured_again(made, cases):
    training = add(made, "nnUNetTrainer")
    cache = made.validation(training) / measurement.CACHE_NAME
    cache.write_text(json.dumps({"version": measurement.CACHE_VERSION, "cases": cases}))
    assert not collect([training]).problems


def test_a_trainer_does_not_drop_out_silently(made):
    trainings = [add(made, "nnUNetTrainer"), add(made, "nnUNetTrainerDice")]
    plans = made.validation(trainings[1]).parent.parent / "plans.json"
    plans.write_text(json.dumps({"image_reader_writer": "NoSuchReader"}))
    with pytest.raises(
        ValueError, match=r"nnUNetTrainerDice has no usable case on Dataset004_Made"
    ):
        collect(trainings)


def test_readers_of_nibabel_are_compared_by_their_affines():
    affine = np.diag([1.0, 1, 3, 1])
    turned = {"spacing": (3, 1, 1), "nibabel_stuff": {"original_affine": -affine}}
    straight = {"spacing": (3, 1, 1), "nibabel_stuff": {"original_affine": affine}}
    assert measurement.geometry_error(straight, straight) == ""
    assert "original affine" in measurement.geometry_error(straight, turned)
