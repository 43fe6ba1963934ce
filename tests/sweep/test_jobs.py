"""The matrix as nnU-Net's commands for what is missing."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from nnunet_unifiedloss.results.plans import Plans, planner_of
from nnunet_unifiedloss.results.trainings import Training
from nnunet_unifiedloss.sweep import Preparation, TrainingJob, plan_jobs
from tests.helpers.fake_nnunet import DATASET, finish, make_folders, write_checkpoint

OURS = "nnUNetTrainerUnifiedFocal"
CASCADE = {
    "3d_lowres": {"data_identifier": "low", "next_stage": "3d_cascade_fullres"},
    "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
}


@pytest.fixture
def folders(tmp_path, monkeypatch) -> dict[str, Path]:
    variables = make_folders(tmp_path)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("nnUNet_def_n_proc", raising=False)
    return {name: Path(value) for name, value in variables.items()}


@pytest.fixture
def preprocessed(folders) -> Path:
    return folders["nnUNet_preprocessed"] / DATASET


@pytest.fixture
def cascade(preprocessed) -> Path:
    path = preprocessed / "nnUNetPlans.json"
    plans = json.loads(path.read_text())
    plans["configurations"] |= CASCADE
    path.write_text(json.dumps(plans))
    (preprocessed / "nnUNetPlans_2d").rename(preprocessed / "low")
    return preprocessed


def commands(configurations=("2d",), trainers=(OURS,), folds=("0",), **options) -> list[str]:
    jobs = plan_jobs([DATASET], configurations, trainers, folds, **options)
    names = [job.name for job in jobs]
    for job in jobs:
        assert all(names.index(before.name) < names.index(job.name) for before in job.requires)
    return [shlex.join(job.command()) for job in jobs if not job.is_done()]


def fold(folders, configuration="2d", trainer=OURS, number="0") -> Path:
    training = Training(DATASET, configuration, "nnUNetPlans", trainer, number)
    return training.folder(folders["nnUNet_results"])


def test_the_matrix(folders):
    assert commands(
        ["2d", "3d_fullres"], ["nnUNetTrainer", OURS], ["0", "all"], flags=["-device", "cpu"]
    ) == [
        f"nnUNetv2_train {DATASET} {configuration} {number} -tr {trainer} -device cpu"
        for configuration in ("2d", "3d_fullres")
        for trainer in ("nnUNetTrainer", OURS)
        for number in ("0", "all")
    ]


def test_only_what_is_missing(folders):
    names = {number: fold(folders, number=number) for number in "01234"}
    write_checkpoint(names["0"] / "checkpoint_best.pth", 3)
    write_checkpoint(names["1"] / "checkpoint_final.pth", 3)
    write_checkpoint(names["2"] / "checkpoint_final.pth", 3)
    finish(names["2"])
    write_checkpoint(names["3"] / "checkpoint_best.pth", 3)
    broken = names["3"] / "checkpoint_latest.pth"
    broken.write_bytes((names["3"] / "checkpoint_best.pth").read_bytes()[:-30])
    assert commands(folds="01234") == [
        f"nnUNetv2_train {DATASET} 2d 0 -tr {OURS} --c",
        f"nnUNetv2_train {DATASET} 2d 1 -tr {OURS} --val",
        f"nnUNetv2_train {DATASET} 2d 3 -tr {OURS} --c",
        f"nnUNetv2_train {DATASET} 2d 4 -tr {OURS}",
    ]
    (job,) = plan_jobs([DATASET], ["2d"], [OURS], ["3"])
    assert job.is_saving()
    job.tidy()
    assert not broken.exists()
    assert (names["3"] / "checkpoint_latest.pth.broken").exists()


def test_a_new_data_set_is_planned_and_preprocessed_first(folders, monkeypatch):
    new = "Dataset005_New"
    (folders["nnUNet_raw"] / new).mkdir()
    plans = ["nnUNetPlans", "nnUNetResEncUNetMPlans"]
    jobs = plan_jobs([new], ["3d_cascade_fullres", "2d"], [OURS], ["0"], plans=plans)
    verify = "--verify_dataset_integrity"
    first, second = (job for job in jobs if isinstance(job, Preparation))
    plan = "nnUNetv2_plan_and_preprocess -d 5 -c 3d_lowres 2d 3d_fullres"
    assert shlex.join(first.command()) == f"{plan} {verify}"
    assert shlex.join(second.command()) == f"{plan} -pl nnUNetPlannerResEncM {verify}"
    monkeypatch.setenv("nnUNet_def_n_proc", "3")
    assert shlex.join(first.command()) == f"{plan} -npfp 3 -np 3 {verify}"
    trainings = [job for job in jobs if isinstance(job, TrainingJob)]
    assert all(job.requires[0] in (first, second) for job in trainings)
    assert {job.requires[0].plans_identifier for job in trainings} == set(plans)
    assert sum("nnUNetResEncUNetMPlans" in job.command() for job in trainings) == 7


def test_existing_plans_are_not_replaced(preprocessed):
    for path in (preprocessed / "nnUNetPlans_3d_fullres").iterdir():
        path.unlink()
    first, *trainings = commands(["2d", "3d_fullres", "2d_small"])
    assert first == "nnUNetv2_preprocess -d 4 -c 3d_fullres"
    assert len(trainings) == 3


@pytest.mark.parametrize("missing", ["nnUNetPlans_2d/case_3.pkl", "gt_segmentations/case_3.nii.gz"])
def test_preprocessing_that_was_cut_off_is_repeated(preprocessed, missing):
    assert Plans(preprocessed, "nnUNetPlans").is_preprocessed("2d_small")
    (preprocessed / missing).unlink()
    assert not Plans(preprocessed, "nnUNetPlans").is_preprocessed("2d_small")
    assert commands()[0].startswith("nnUNetv2_preprocess")


def test_references_of_removed_cases_are_ignored(preprocessed):
    (preprocessed / "nnUNetPlans_2d" / "case_3.pkl").unlink()
    dataset = {"file_ending": ".nii.gz", "numTraining": 9}
    (preprocessed / "dataset.json").write_text(json.dumps(dataset))
    assert Plans(preprocessed, "nnUNetPlans").is_preprocessed("2d")
    (preprocessed / "nnUNetPlans_2d" / "case_4.pkl").unlink()
    assert not Plans(preprocessed, "nnUNetPlans").is_preprocessed("2d")


def test_names_of_cases_may_have_dots(preprocessed):
    (preprocessed / "gt_segmentations" / "case.1.2.nii.gz").touch()
    (preprocessed / "nnUNetPlans_2d" / "case.1.2.pkl").touch()
    assert Plans(preprocessed, "nnUNetPlans").is_preprocessed("2d")


def test_a_cascade_needs_all_folds_of_its_first_stage(cascade, folders):
    train = f"nnUNetv2_train {DATASET}"
    low = [f"{train} 3d_lowres {number} -tr {OURS}" for number in range(5)]
    assert commands(["3d_cascade_fullres"]) == [*low, f"{train} 3d_cascade_fullres 0 -tr {OURS}"]
    jobs = plan_jobs([DATASET], ["3d_cascade_fullres", "3d_lowres"], [OURS, "B"], ["all"])
    assert len(jobs) == 2 * (6 + 1)
    last = jobs[-1]
    assert [job.training.fold for job in last.requires] == ["0", "1", "2", "3", "4"]
    assert {job.training.trainer for job in last.requires} == {"B"}


def test_a_first_stage_without_predictions_for_the_next_is_validated_again(cascade, folders):
    for number in "01234":
        finish(fold(folders, "3d_lowres", number=number))
    predicted = fold(folders, "3d_lowres").parent / "predicted_next_stage" / "3d_cascade_fullres"
    predicted.mkdir(parents=True)
    for number in range(10):
        (predicted / f"case_{number}.b2nd").touch()
    assert len(commands(["3d_cascade_fullres"])) == 1
    (predicted / "case_7.b2nd").unlink()  # a validation case of fold 2
    assert commands(["3d_cascade_fullres"])[0] == (
        f"nnUNetv2_train {DATASET} 3d_lowres 2 -tr {OURS} --val"
    )
    assert commands(["3d_lowres"], folds="01234") == []  # nobody asks for them
    (fold(folders, "3d_lowres", number="2") / "checkpoint_final.pth").unlink()
    with pytest.raises(ValueError, match=r"fold_2: is trained, but has no predictions.*remedy"):
        commands(["3d_cascade_fullres"])


@pytest.mark.parametrize("number", ["2", "all"])
def test_a_training_without_the_probabilities_for_an_ensemble_is_validated_again(folders, number):
    npz = {"folds": [number], "flags": ["--npz"]}
    folder = fold(folders, number=number)
    train = f"nnUNetv2_train {DATASET} 2d {number} -tr {OURS} --npz"
    assert commands(**npz) == [train]
    finish(folder)
    assert commands(folds=[number]) == []
    assert commands(**npz) == [f"{train} --val"]
    for case in range(10) if number == "all" else (2, 7):
        assert commands(**npz) == [f"{train} --val"]
        (folder / "validation" / f"case_{case}.npz").touch()
    assert commands(**npz) == []


def test_configurations_that_are_not_planned(folders, preprocessed):
    other = folders["nnUNet_preprocessed"] / "Dataset005_Flat"
    other.mkdir()
    (other / "nnUNetPlans.json").write_text(json.dumps({"configurations": {"2d": {}}}))
    jobs = plan_jobs([DATASET, other.name], ["3d_fullres"], [OURS], ["0"])
    assert [job.is_planned() for job in jobs] == [True, False]
    (job,) = plan_jobs([other.name], ["3d_lowres"], [OURS], ["0"])  # in no data set at all
    assert not job.is_planned()
    with pytest.raises(ValueError, match=r"-c 3d_fulres: none .* 2d, 2d_small, .*; remedy"):
        commands(["3d_fulres"])


def test_data_sets_that_cannot_be_prepared_are_refused(folders):
    with pytest.raises(ValueError, match=r"-d Dataset009_None: .* not in nnUNet_raw=.*remedy"):
        plan_jobs(["Dataset009_None"], ["2d"], [OURS], ["0"])
    assert len(plan_jobs(["Dataset009_None"], ["2d"], [OURS], ["0"], to_run=False)) == 2
    with pytest.raises(ValueError, match=r"-p myPlans: .* no planner.*-overwrite_plans_name"):
        plan_jobs([DATASET], ["2d"], [OURS], ["0"], plans=["myPlans"])


def test_malformed_plans_are_refused(preprocessed):
    (preprocessed / "nnUNetPlans.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match=r"nnUNetPlans.json: has no 'configurations'.*remedy"):
        commands()
    (preprocessed / "nnUNetPlans.json").write_text('{"configurations": {')
    with pytest.raises(ValueError, match=r"nnUNetPlans.json: not readable as JSON"):
        commands()


def test_the_first_training_writes_the_splits_alone(folders, preprocessed):
    first, all_cases = plan_jobs([DATASET], ["2d"], [OURS], ["0", "all"])
    assert first.shared is None
    (preprocessed / "splits_final.json").unlink()
    assert first.shared is not None
    assert all_cases.shared is None
    (preprocessed / "splits_final.json").write_text('[{"train": [')  # being written
    assert first.shared is not None


def test_planners_are_those_of_nnunet():
    """Import nnU-Net for comparison, which is too slow for the command."""
    from nnunetv2.experiment_planning.experiment_planners.residual_unets import (
        residual_encoder_unet_planners as module,
    )

    for name in ("nnUNetPlannerResEncM", "nnUNetPlannerResEncL", "nnUNetPlannerResEncXL"):
        defaults = getattr(module, name).__init__.__defaults__
        (identifier,) = (value for value in defaults if str(value).startswith("nnUNet"))
        assert planner_of(identifier) == name
    assert planner_of("nnUNetPlans") == "ExperimentPlanner"
    assert planner_of("myPlans") is None
