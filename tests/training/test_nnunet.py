"""nnU-Net's own commands with our trainers, on real data, in every label scenario."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from importlib import metadata
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace

import nnunetv2
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_unifiedloss.training.catalogue import catalogue
from tests.helpers.nnunet_workspace import CASES, SCENARIOS, Workspace

MAIN = "nnUNetTrainerUnifiedFocal_delta0.7_NoMirroring_2epochs_10iters"
QUICK = "nnUNetTrainerUnifiedFocal_2epochs_2iters"


class QuickWorkspace(Workspace):
    """Runs nnU-Net's commands in this process, with threads in place of its processes.

    nnU-Net starts several processes for every command, and each of them imports PyTorch.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, nnUNet_n_proc_DA="0")

    def run(self, *command: str, timeout: float = 0, fails: bool = False) -> str:
        """Run a command; the message of the error if it is expected to fail."""
        (script,) = metadata.entry_points(group="console_scripts", name=command[0])
        context = SimpleNamespace(Pool=ThreadPool)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environment.items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", list(command))
            patch.setattr(multiprocessing, "get_context", lambda method=None: context)
            patch.setattr(torch, "set_num_threads", lambda count: None)
            if not fails:
                script.load()()
                return ""
            with pytest.raises(Exception) as failure:  # noqa: PT011 (any error that ends a command)
                script.load()()
            return str(failure.value)


@pytest.fixture(scope="module")
def workspaces(test_data, tmp_path_factory):
    """Prepared workspaces by scenario and configurations, made on demand."""
    made = {}

    def workspace(scenario: str, *configurations: str) -> Workspace:
        key = (scenario, configurations)
        if key not in made:
            made[key] = Workspace(tmp_path_factory.mktemp(scenario))
            made[key].prepare(test_data, scenario, list(configurations))
        return made[key]

    return workspace


def check_validation(workspace: Workspace, trainer: str, configuration: str) -> None:
    fold = workspace.fold(trainer, configuration)
    summary = json.loads((fold / "validation" / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == CASES // 5
    assert len(summary["mean"]) == 2
    for case in summary["metric_per_case"]:  # hardly anything is segmented yet, but all is counted
        for metrics in case["metrics"].values():
            assert metrics["TP"] + metrics["FN"] == metrics["n_ref"] > 0


def check_log(workspace: Workspace, trainer: str, configuration: str) -> str:
    """The log names the loss and its terms, and every loss in it is a number."""
    log = "".join(
        path.read_text()
        for path in sorted(workspace.fold(trainer, configuration).glob("training_log*.txt"))
    )
    assert "Loss: UnifiedFocalLoss(" in log
    assert "loss terms: AsymmetricFocalTversky 0." in log
    losses = [
        float(line.split()[-1])
        for line in log.splitlines()
        if "train_loss" in line or "val_loss" in line
    ]
    assert losses
    assert np.isfinite(losses).all()
    return log


def predict(
    workspace: Workspace, trainer: str, configuration: str, output: Path, *flags: str
) -> None:
    command = [
        "nnUNetv2_predict",
        "-d",
        "4",
        "-i",
        str(workspace.test_images),
        "-o",
        str(output),
        "-f",
        "0",
    ]
    command += [
        "-tr",
        trainer,
        "-c",
        configuration,
        "-device",
        "cpu",
        "-npp",
        "1",
        "-nps",
        "1",
        "--disable_tta",
    ]
    workspace.run(*command, *flags)
    predictions = sorted(output.glob("*.nii.gz"))
    assert len(predictions) == 2
    for path in predictions:
        image = sitk.ReadImage(
            str(workspace.test_images / path.name.replace(".nii.gz", "_0000.nii.gz"))
        )
        prediction = sitk.ReadImage(str(path))
        assert prediction.GetSize() == image.GetSize()
        assert set(np.unique(sitk.GetArrayFromImage(prediction))) <= {0, 1, 2}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_train_and_validate(test_data, tmp_path, scenario):
    workspace = QuickWorkspace(tmp_path)
    workspace.prepare(test_data, scenario, ["2d"])
    workspace.train(QUICK)
    check_validation(workspace, QUICK, "2d")
    log = check_log(workspace, QUICK, "2d")
    assert f"regions={'regions' in scenario}" in log
    assert f"ignore_label={3 if 'ignore' in scenario else None}, batch_dice=True" in log


def test_a_bad_name_fails_before_anything_is_written(tmp_path):
    workspace = QuickWorkspace(tmp_path)
    name = "nnUNetTrainerUnifiedFocal_gamma0.3_delta0.7"
    output = workspace.train(name, fails=True)
    assert "another spelling of nnUNetTrainerUnifiedFocal_delta0.7_gamma0.3" in output
    assert not list(workspace.results.iterdir())


@pytest.mark.slow
def test_train_interrupt_continue_predict(workspaces, tmp_path):
    workspace = workspaces("plain", "2d")
    workspace.interrupt_training(MAIN)
    workspace.train(MAIN, "2d", "--c", "--npz")
    check_validation(workspace, MAIN, "2d")
    log = check_log(workspace, MAIN, "2d")
    epochs = [
        line.split()[-1] for line in log.splitlines() if ": Epoch " in line and "time" not in line
    ]
    assert epochs.count("0") == 1  # the epoch before the interruption is not trained again
    assert epochs[-1] == "1"
    assert len(list((workspace.fold(MAIN, "2d") / "validation").glob("*.npz"))) == CASES // 5
    predict(workspace, MAIN, "2d", tmp_path / "predictions")


def listing(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts
    }


@pytest.mark.slow
def test_installed_into_nnunet(test_data, tmp_path):
    """`install` serves every command without a variable; `uninstall` takes it back."""
    copy = tmp_path / "site" / "nnunetv2"
    shutil.copytree(
        Path(nnunetv2.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__")
    )
    before = listing(copy)
    workspace = Workspace(
        tmp_path / "work", PYTHONPATH=str(copy.parent), PYTHONDONTWRITEBYTECODE="1"
    )
    del workspace.environment["nnUNet_extTrainer"]
    workspace.prepare(test_data, "plain", ["2d"])
    workspace.train(QUICK, fails=True)
    workspace.run("nnunet-unifiedloss", "install")
    assert len(listing(copy) - before) == 1
    workspace.interrupt_training(MAIN)
    workspace.train(MAIN, "2d", "--c")
    check_validation(workspace, MAIN, "2d")
    predict(workspace, MAIN, "2d", tmp_path / "predictions")
    weights = workspace.fold(MAIN, "2d") / "checkpoint_final.pth"
    workspace.train(QUICK, "2d", "-pretrained_weights", str(weights))
    workspace.run("nnunet-unifiedloss", "uninstall")
    assert listing(copy) == before
    workspace.train(QUICK, "2d", "--c", fails=True)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_complete_workflow(workspaces, tmp_path, scenario):
    """Train, interrupt, continue, validate again, predict, find the best configuration."""
    workspace = workspaces(scenario, "2d", "3d_fullres")
    for configuration in ("2d", "3d_fullres"):
        workspace.interrupt_training(QUICK, configuration)
        workspace.train(QUICK, configuration, "--c", "--npz")
        shutil.rmtree(workspace.fold(QUICK, configuration) / "validation")
        workspace.train(QUICK, configuration, "--val", "--npz")
        check_validation(workspace, QUICK, configuration)
        check_log(workspace, QUICK, configuration)
        predict(workspace, QUICK, configuration, tmp_path / configuration)
    best = [
        "nnUNetv2_find_best_configuration",
        "4",
        "-c",
        "2d",
        "3d_fullres",
        "-tr",
        QUICK,
        "-f",
        "0",
        "-np",
        "2",
    ]
    workspace.run(*best)
    information = json.loads(
        (workspace.results / "Dataset004_Hippocampus" / "inference_information.json").read_text()
    )
    assert QUICK in json.dumps(information["best_model_or_ensemble"])


@pytest.mark.slow
def test_cascade(workspaces, tmp_path):
    workspace = workspaces("plain", "3d_lowres", "3d_fullres")
    for fold in range(5):  # the second stage trains on the first one's cross-validated predictions
        workspace.train(QUICK, "3d_lowres", fold=fold)
    cascade = "3d_cascade_fullres"
    workspace.interrupt_training(QUICK, cascade)
    workspace.train(QUICK, cascade, "--c")
    check_validation(workspace, QUICK, cascade)
    check_log(workspace, QUICK, cascade)
    predict(workspace, QUICK, "3d_lowres", tmp_path / "lowres")
    stage = ["-prev_stage_predictions", str(tmp_path / "lowres")]
    predict(workspace, QUICK, cascade, tmp_path / "cascade", *stage)
    find = f"nnUNetv2_find_best_configuration 4 -c 3d_lowres -tr {QUICK} -np 2 --disable_ensembling"
    workspace.run(*find.split())


@pytest.mark.slow
def test_resenc_plans_and_all_data(workspaces):
    workspace = workspaces("regions", "2d")
    planner = ["nnUNetv2_plan_experiment", "-d", "4", "-pl", "nnUNetPlannerResEncM"]
    workspace.run(*planner)
    plans_file = workspace.dataset / "nnUNetResEncUNetMPlans.json"
    plans = json.loads(plans_file.read_text())
    arguments = plans["configurations"]["2d"]["architecture"]["arch_kwargs"]
    arguments["features_per_stage"] = [8] * arguments["n_stages"]
    plans["configurations"]["2d"]["batch_size"] = 4
    plans_file.write_text(json.dumps(plans))
    workspace.train(QUICK, "2d", "-p", "nnUNetResEncUNetMPlans", fold="all")
    assert (
        workspace.fold(QUICK, "2d", "nnUNetResEncUNetMPlans", "all") / "checkpoint_final.pth"
    ).exists()


@pytest.mark.slow
def test_trainers_from_a_built_wheel(tmp_path):
    """The wheel carries the trainers' folder, and `path` finds it where the wheel is installed."""
    root = Path(__file__).parents[2]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "-w", str(tmp_path), str(root)], check=True, timeout=300
    )
    (wheel,) = tmp_path.glob("*.whl")
    target = tmp_path / "installed"
    subprocess.run(
        [*pip, "install", "--no-deps", "--target", str(target), str(wheel)], check=True, timeout=300
    )
    code = (
        "from nnunet_unifiedloss.training.install import trainers_folder as f;"
        "from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find;"
        "import os; os.environ['nnUNet_extTrainer'] = str(f());"
        "name = find('nnUNetTrainerUnifiedFocal_delta0.7_3epochs').__name__;"
        "print(f()); print(name)"
    )
    environment = os.environ | {"PYTHONPATH": str(target)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment, capture_output=True, text=True, timeout=300, check=True, cwd=tmp_path,
    )  # fmt: skip
    folder, name = done.stdout.splitlines()[-2:]
    assert folder.startswith(str(target))
    assert name == "nnUNetTrainerUnifiedFocal_delta0.7_3epochs"


TRAIN_ALL = """
import sys, torch
from nnunetv2.run.run_training import run_training
torch.set_num_threads(1)
for trainer in sys.argv[1:]:
    run_training("4", "2d", "0", trainer, device=torch.device("cpu"))
    print("finished", trainer, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_trainer_trains_and_validates(workspaces, scenario):
    """In one process for each scenario: starting Python takes longer than two iterations."""
    workspace = workspaces(scenario, "2d")
    names = [f"{entry.trainer}_1epochs_2iters" for entry in catalogue()]
    output = workspace.run(sys.executable, "-c", TRAIN_ALL, *names, timeout=5400)
    assert output.count("finished ") == len(names)
    for name in names:
        check_validation(workspace, name, "2d")
        log = "".join(
            path.read_text() for path in workspace.fold(name, "2d").glob("training_log*.txt")
        )
        losses = [float(line.split()[-1]) for line in log.splitlines() if "_loss " in line]
        assert len(losses) == 2, name
        assert np.isfinite(losses).all(), name
