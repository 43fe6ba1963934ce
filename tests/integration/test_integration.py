"""Checks of the integration suite on made-up results, and a small run of the suite itself."""

from __future__ import annotations

import itertools
import json
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from tests.helpers.nnunet_workspace import add_cascade
from tests.integration import run
from tests.integration.checks import check_dice, constant_dice, predicted_labels
from tests.integration.suite import CONFIGURATIONS, DATASETS, SOURCE, StepFailedError, Suite, small

TRAINER, PLANS, FOLDS = "nnUNetTrainerUnifiedFocal_5epochs_2iters", "nnUNetSmallPlans", (0, 1)
NAME = DATASETS[998]
CONTENT = {
    "labels": {"background": 0, "anterior": 1, "ignore": 2},
    "file_ending": ".nii.gz",
}
LOG = "t: Epoch 0\nt: train_loss 0.5\nt: val_loss 0.25\nt: Pseudo dice [0.5]\n"
VALIDATED = {"0": ["case_0", "case_1"], "1": ["case_2"]}


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def write_image(path: Path, voxels: np.ndarray, spacing: float = 1.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing((1.0, 1.0, spacing))
    sitk.WriteImage(image, str(path))


def labels(*values: int) -> np.ndarray:
    """A quarter of the voxels each; the rest is background."""
    voxels = np.zeros((4, 5, 6), np.uint8)
    for index, value in enumerate(values):
        voxels[index] = value
    return voxels


def models() -> list[str]:
    return [f"{TRAINER}__{PLANS}__{configuration}" for configuration in CONFIGURATIONS]


def write_training(fold: Path, cases: list[str]) -> None:
    write(fold / "checkpoint_final.pth", "")
    write(fold / "training_log_1.txt", LOG)
    summary = {"foreground_mean": {"Dice": 0.8}, "mean": {}, "metric_per_case": []}
    write(fold / "validation" / "summary.json", summary)
    for case in cases:
        for ending in (".nii.gz", ".npz"):
            write(fold / "validation" / f"{case}{ending}", "")


def write_information(results: Path) -> None:
    """The second ensemble is the best."""
    pairs = [f"ensemble___{one}___{two}___0_1" for one, two in itertools.combinations(models(), 2)]
    dice = {key: 0.6 + index / 100 for index, key in enumerate([*models(), *pairs])}
    dice[pairs[1]] = 0.9
    for name, content in (("some.pkl", pickle.dumps(([], []))), ("plans.json", b"{}")):
        (results / name).write_bytes(content)
    selected = [
        {"configuration": configuration, "trainer": TRAINER, "plans_identifier": PLANS}
        for configuration in ("2d", "3d_cascade_fullres")
    ]
    best = {
        "result_on_crossval_pre_pp": 0.9,
        "result_on_crossval_post_pp": 0.91,
        "postprocessing_file": str(results / "some.pkl"),
        "some_plans_file": str(results / "plans.json"),
        "selected_model_or_models": selected,
    }
    considered = [
        {"plans": PLANS, "configuration": configuration, "trainer": TRAINER}
        for configuration in CONFIGURATIONS
    ]
    information = {
        "folds": list(FOLDS),
        "dataset_name_or_id": NAME,
        "considered_models": considered,
        "ensembling_allowed": True,
        "all_results": dice,
        "best_model_or_ensemble": best,
    }
    write(results / "inference_information.json", information)
    commands = [f"nnUNetv2_predict -f 0 1 -tr {TRAINER} -c {m['configuration']}" for m in selected]
    write(results / "inference_instructions.txt", "\n".join(commands))


@pytest.fixture
def work(tmp_path) -> Path:
    """Files of a flawless run on data set 998."""
    folder = tmp_path / "work"
    raw, preprocessed = folder / "raw" / NAME, folder / "preprocessed" / NAME
    results, predictions = folder / "results" / NAME, folder / "predictions" / NAME
    (tmp_path / SOURCE).mkdir()
    write(raw / "dataset.json", CONTENT)
    write(preprocessed / "splits_final.json", [{"train": [], "val": v} for v in VALIDATED.values()])
    for number in range(3):
        path = preprocessed / "gt_segmentations" / f"case_{number}.nii.gz"
        write_image(path, labels(1, 2))
    for case in ("test_0", "test_1"):
        write_image(raw / "imagesTs" / f"{case}_0000.nii.gz", labels().astype(np.float32))
        write_image(raw / "labelsTs" / f"{case}.nii.gz", labels(1, 2))
        write_image(predictions / "postprocessed" / f"{case}.nii.gz", labels(1))
    write(predictions / "summary.json", {"foreground_mean": {"Dice": 0.8}})
    for model, (fold, cases) in itertools.product(models(), VALIDATED.items()):
        write_training(results / model / f"fold_{fold}", cases)
    write_information(results)
    return folder


def words(work: Path, *options: str) -> list[str]:
    matrix = ["--datasets", "998", "--folds", "0", "1", "--trainer", TRAINER]
    return ["--data", str(work.parent), "--work", str(work), *matrix, *options]


def check(work: Path, *options: str) -> int:
    """The exit code of a look at what is there."""
    return run.main(words(work, "--check-only", *options))


def problems(work: Path, *options: str) -> list[str]:
    """Problems that a check of the existing files finds."""
    code = check(work, *options)
    (outcome,) = json.loads((work / "result.json").read_text())["datasets"]
    assert code == (1 if outcome["problems"] else 0)
    return outcome["problems"]


def test_nothing_is_wrong(work, capsys):
    assert problems(work) == []
    # a quarter of the voxels is anterior, a quarter is ignored: n of N are 30 of 90
    assert json.loads((work / "result.json").read_text())["datasets"][0]["constant"] == 0.5
    row = "| 998 | 8/8 | 0.600 | 0.610 | 0.620 | 0.630 | 2d + 3d_cascade_fullres | 0.900 | 0.910 "
    row += "| 0.500 | 0.800 | 0.500 | passed |"
    assert row in capsys.readouterr().out
    assert row in (work / "result.md").read_text()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda fold: (fold / "validation" / "summary.json").unlink(), "is not finished"),
        (lambda fold: (fold / "checkpoint_final.pth").unlink(), "has no checkpoint_final.pth"),
        (lambda fold: (fold / "validation" / "case_1.npz").unlink(), "has no case_1.npz"),
        (lambda fold: (fold / "validation" / "case_0.nii.gz").unlink(), "has no case_0.nii.gz"),
        (
            lambda fold: write(fold / "training_log_1.txt", LOG.replace("0.25", "nan")),
            "epoch 0: val_loss is nan",
        ),
        (lambda fold: write(fold / "training_log_1.txt", ""), "the log has no epoch"),
        (
            lambda fold: write(
                fold / "validation" / "summary.json",
                {"foreground_mean": {"Dice": math.nan}, "metric_per_case": []},
            ),
            "validation: Dice is nan, not a finite number",
        ),
    ],
)
def test_a_training_that_went_wrong(work, change, expected):
    change(work / "results" / NAME / models()[1] / "fold_0")
    (found,) = problems(work)
    assert found.startswith("3d_lowres fold 0")
    assert expected in found


def of_best(**changes: object):
    return lambda information: information["best_model_or_ensemble"].update(changes)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda information: information.pop("considered_models"), "has no considered_models"),
        (
            lambda information: information["best_model_or_ensemble"].pop("postprocessing_file"),
            "has no postprocessing_file",
        ),
        (lambda information: information["considered_models"].pop(), "considered_models is"),
        (lambda information: information.update(folds=[0, 1, 2]), "folds is [0, 1, 2]"),
        (lambda information: information.update(ensembling_allowed=False), "ensembling_allowed is"),
        (
            lambda information: information["all_results"].popitem(),
            f"all_results lacks ensemble___{models()[2]}___{models()[3]}___0_1",
        ),
        (lambda information: information["all_results"].update({models()[0]: 1.2}), "Dice is 1.2"),
        (
            lambda information: information["all_results"].update({models()[0]: math.nan}),
            "Dice is nan",
        ),
        (lambda information: information["all_results"].update({models()[0]: 0.95}), "0.95 is th"),
        (of_best(result_on_crossval_post_pp=0.8), "postprocessing lowers Dice from 0.9 to 0.8"),
        (of_best(postprocessing_file="nowhere.pkl"), "postprocessing_file cannot be read"),
        (of_best(some_plans_file="nowhere.json"), "some_plans_file cannot be read"),
        (of_best(selected_model_or_models=[]), "no model is selected"),
        (
            lambda information: information["best_model_or_ensemble"][
                "selected_model_or_models"
            ].pop(),
            "selected is ['2d'], but the best is ['2d', '3d_cascade_fullres']",
        ),
        (
            lambda information: information["best_model_or_ensemble"]["selected_model_or_models"][
                0
            ].update(trainer="nnUNetTrainer"),
            "was not considered",
        ),
    ],
)
def test_information_that_is_broken(work, change, expected):
    path = work / "results" / NAME / "inference_information.json"
    information = json.loads(path.read_text())
    change(information)
    path.write_text(json.dumps(information))
    assert any(expected in line for line in problems(work)), problems(work)


def test_information_that_is_cut_off_or_absent(work):
    path = work / "results" / NAME / "inference_information.json"
    path.write_text(path.read_text()[:-50])
    assert "not readable as JSON" in problems(work)[0]
    path.unlink()
    assert "inference_information.json" in problems(work)[0]


def test_files_that_inference_needs(work):
    (work / "results" / NAME / "some.pkl").write_bytes(b"no pickle")
    (work / "results" / NAME / "inference_instructions.txt").unlink()
    lines = problems(work)
    assert len(lines) == 3
    assert "postprocessing_file cannot be read" in lines[0]
    assert "no command for 2d" in lines[1]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda path: path.unlink(), "test_1 is missing"),
        (lambda path: write_image(path, labels(1, 2)), "test_1: has the labels [2]"),
        (lambda path: write_image(path, labels(1), spacing=2.0), "test_1: Spacing is"),
        (lambda path: write_image(path, labels(1)[:3]), "test_1: Size is"),
        (lambda path: path.rename(path.with_name("test_2.nii.gz")), "test_2 has no image"),
    ],
)
def test_a_prediction_that_is_wrong(work, change, expected):
    change(work / "predictions" / NAME / "postprocessed" / "test_1.nii.gz")
    assert any(expected in line for line in problems(work))


def test_predictions_that_are_all_empty(work):
    for path in (work / "predictions" / NAME / "postprocessed").iterdir():
        write_image(path, labels())
    assert problems(work) == ["predictions: all are empty"]


def test_models_that_have_learned_nothing(work):
    path = work / "results" / NAME / "inference_information.json"
    information = json.loads(path.read_text())
    information["all_results"][models()[0]] = 0.4
    path.write_text(json.dumps(information))
    write(work / "predictions" / NAME / "summary.json", {"foreground_mean": {"Dice": 0.45}})
    assert problems(work) == [
        "2d: cross-validation: Dice is 0.400, not above the 0.500 of a constant prediction",
        "held-out cases: Dice is 0.450, not above the 0.500 of a constant prediction",
    ]
    assert problems(work, "--untrained") == []
    (work / "predictions" / NAME / "summary.json").unlink()
    assert "held-out cases: not evaluated" in problems(work, "--untrained")[0]


def test_a_data_set_that_is_not_there(work):
    (work / "raw" / NAME / "dataset.json").unlink()
    assert "is not prepared" in problems(work)[0]


def test_other_settings_are_refused(work, capsys):
    assert problems(work) == []
    assert not (work / "settings.json").exists()  # a look leaves nothing
    run.check_settings(run.suite_of(run.parser().parse_args(words(work))), begin=True)
    assert problems(work) == []
    assert check(work, "--cases", "20") == 2
    assert "was begun with" in capsys.readouterr().err
    (work.parent / SOURCE).rmdir()
    assert check(work) == 2
    assert f"has no {SOURCE}" in capsys.readouterr().err


@pytest.mark.slow
def test_a_misspelt_trainer_is_refused_before_anything_is_done(work, capsys, monkeypatch):
    monkeypatch.setenv("nnUNet_extTrainer", "")  # put back at the end
    begun = sorted(work.rglob("*"))
    assert run.main(words(work, "--trainer", "nnUNetTrainerUnifedFocal")) == 2
    assert "did you mean nnUNetTrainerUnifiedFocal" in capsys.readouterr().err
    assert sorted(work.rglob("*")) == begun


def test_dice():
    assert check_dice("a", 0.0) == check_dice("a", 1.0) == check_dice("a", 0.3, above=0.2) == []
    for dice in (None, math.nan, math.inf, -0.1, 1.1):
        assert len(check_dice("a", dice)) == 1
    assert len(check_dice("a", 0.2, above=0.2)) == 1


@pytest.mark.parametrize(
    "content",
    [
        {"labels": {"background": 0, "anterior": 1, "posterior": 2}},
        {"labels": {"background": 0, "anterior": 1, "ignore": 2}},
        {
            "labels": {"background": 0, "hippocampus": [1, 2], "anterior": 1, "ignore": 3},
            "regions_class_order": [2, 1],
        },
    ],
)
def test_the_constant_prediction_as_nnunet_counts_it(tmp_path, content):
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    generator = np.random.default_rng(0)
    names = content["labels"]
    foreground = [value for name, value in names.items() if value and name != "ignore"]
    dice = []
    for number in range(3):
        voxels = generator.integers(0, len(names), (4, 5, 6)).astype(np.uint8)
        reference = tmp_path / f"case_{number}.nii.gz"
        write_image(reference, voxels)
        for value in foreground:  # one label everywhere, which is in the region, too
            prediction = tmp_path / "prediction.nii"
            write_image(prediction, np.full_like(voxels, np.min(value)))
            region = tuple(value) if isinstance(value, list) else value
            metrics = compute_metrics(
                str(reference), str(prediction), SimpleITKIO(), [region], names.get("ignore")
            )
            dice.append(metrics["metrics"][region]["Dice"])
    references = sorted(tmp_path.glob("case_*.nii.gz"))
    assert constant_dice(references, content) == pytest.approx(np.mean(dice))


def test_the_labels_that_may_be_predicted():
    assert predicted_labels(CONTENT) == {0, 1}
    regions = {"background": 0, "hippocampus": [1, 2], "anterior": 1, "ignore": 3}
    assert predicted_labels({"labels": regions, "regions_class_order": [2, 1]}) == {1, 2}


@pytest.fixture
def suite(tmp_path) -> Suite:
    source = tmp_path / "source"
    for number in range(12):
        for name in (f"imagesTr/case_{number:02}_0000.nii.gz", f"labelsTr/case_{number:02}.nii.gz"):
            write(source / SOURCE / name, name)
    labels = {"background": 0, "anterior": 1, "posterior": 2}
    content = {"labels": labels, "numTraining": 12, "file_ending": ".nii.gz"}
    write(source / SOURCE / "dataset.json", content | {"channel_names": {"0": "MRI"}})
    return Suite(tmp_path / "work", source, TRAINER, folds=FOLDS, cases=10, test_cases=3)


def test_nnunets_script_builds_the_data_set(suite):
    """With the last three of ten cases held out; again, nothing is done."""
    suite._build(NAME)
    raw = suite.work / "raw" / NAME
    content = json.loads((raw / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "Anterior": 1, "ignore": 2}
    assert content["numTraining"] == 7
    count = {path.name: len(list(path.iterdir())) for path in raw.iterdir() if path.is_dir()}
    assert count == {"imagesTr": 7, "labelsTr": 7, "imagesTs": 3, "labelsTs": 3}
    assert (raw / "labelsTs" / "case_09.nii.gz").read_text() == "labelsTr/case_09.nii.gz"
    changed = raw.stat().st_mtime_ns
    suite._build(NAME)
    assert raw.stat().st_mtime_ns == changed


def test_too_few_cases(suite):
    with pytest.raises(ValueError, match=r"10 labelled cases are too few .* 6 test cases; remedy"):
        Suite(suite.work, suite.source, TRAINER, cases=10, test_cases=6)._build(NAME)


def test_a_folder_has_its_name_when_it_is_complete(suite):
    target = suite.work / "filled"
    program = (
        "import sys, pathlib; pathlib.Path(sys.argv[1], 'a').touch(); sys.exit(int(sys.argv[2]))"
    )
    command = [sys.executable, "-c", program, "OUTPUT_FOLDER"]
    with pytest.raises(StepFailedError, match=r"filled failed with exit status 3: see .*\.log"):
        suite._fill(target, NAME, [*command, "3"])
    assert not target.exists()
    suite._fill(target, NAME, [*command, "0"])
    assert [path.name for path in target.iterdir()] == ["a"]
    suite._fill(target, NAME, [*command, "3"])  # is not run again


def test_the_best_is_found_again_after_a_training(work):
    suite = Suite(work, work.parent, TRAINER, folds=FOLDS)
    assert suite.has_found_best(998)
    summary = work / "results" / NAME / models()[0] / "fold_1" / "validation" / "summary.json"
    later = suite.information(998).stat().st_mtime + 10
    os.utime(summary, (later, later))
    assert not suite.has_found_best(998)
    summary.unlink()
    assert not suite.has_found_best(998)


def test_plans_of_a_small_network():
    architecture = {"arch_kwargs": {"n_stages": 4, "features_per_stage": [32, 64, 128, 256]}}
    configuration = {"architecture": architecture, "batch_size": 9, "patch_size": [40, 56, 40]}
    plans = {"plans_name": "nnUNetPlans", "configurations": {"3d_fullres": configuration}}
    add_cascade(plans["configurations"])
    made = small(plans)
    assert made["plans_name"] == PLANS
    full = made["configurations"]["3d_fullres"]
    assert full["architecture"]["arch_kwargs"]["features_per_stage"] == [8, 16, 32, 32]
    assert (full["batch_size"], full["patch_size"]) == (4, [24, 32, 24])
    assert made["configurations"]["3d_cascade_fullres"] == {
        "inherits_from": "3d_fullres",
        "previous_stage": "3d_lowres",
    }
    assert plans["configurations"]["3d_fullres"]["batch_size"] == 9


@pytest.mark.slow
def test_the_suite_cut_down(test_data, tmp_path):
    """One data set, two folds, one iteration: every step and check, but not whether it learns."""
    program = Path(__file__).with_name("run.py")
    command = [sys.executable, str(program), "--data", str(test_data), "--work", str(tmp_path)]
    command += ["--trainer", "nnUNetTrainerUnifiedFocal_1epochs_1iters", "--untrained"]
    command += ["--datasets", "996", "--folds", "0", "1", "--cases", "12", "--test-cases", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3000, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| 996 | 8/8 |" in done.stdout
