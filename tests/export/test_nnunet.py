"""Exported models in an environment that has nnU-Net and not this package, on real images."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from tests.helpers.nnunet_workspace import Workspace

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "examples" / "onnx_sliding_window.py"
TRAINER = "nnUNetTrainerDice_lr0.05_3epochs_200iters"  # it learns to find something in seconds
SHORT = "nnUNetTrainerDice_lr0.05_1epochs_100iters"  # 3-D patches need fewer iterations, and longer
LONGEST = 3000  # seconds for one command, on a machine that does other things besides
IMAGES = 5


@pytest.fixture(scope="session")
def stock(tmp_path_factory) -> Path:
    """The commands of a virtual environment with nnunetv2 only.

    ``UNIFIEDLOSS_PLAIN_VENV`` names one that is there; otherwise it is made, which downloads
    gigabytes.
    """
    folder = Path(os.environ.get("UNIFIEDLOSS_PLAIN_VENV") or tmp_path_factory.mktemp("stock"))
    if not (folder / "bin").is_dir():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=300)
        pip = [str(folder / "bin" / "pip"), "install", "-q", "nnunetv2"]
        subprocess.run(pip, check=True, timeout=3000)
    ours = [str(folder / "bin" / "python"), "-c", "import nnunet_unifiedloss"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        ours, env=environment, cwd=folder, capture_output=True, timeout=100, check=False
    )
    assert b"No module named 'nnunet_unifiedloss'" in done.stderr
    return folder / "bin"


@pytest.fixture(scope="module")
def images(test_data, tmp_path_factory) -> Path:
    """Images that no training has seen."""
    folder = tmp_path_factory.mktemp("images")
    source = test_data / "Dataset004_Hippocampus" / "imagesTr"
    for path in sorted(source.glob("*.nii.gz"))[-IMAGES:]:
        shutil.copy(path, folder)
    return folder


def elsewhere(workspace: Workspace, folder: Path) -> Workspace:
    """A machine with nnU-Net, where this package has never been."""
    other = Workspace(folder)
    for name in ("nnUNet_extTrainer", "PYTHONPATH"):
        other.environment.pop(name, None)
    return other


def predict(
    workspace, trainer, images, output, configuration, *, folds=("0",), commands=None, stage=None
):
    program = "nnUNetv2_predict" if commands is None else str(commands / "nnUNetv2_predict")
    flags = [] if stage is None else ["-prev_stage_predictions", str(stage)]
    workspace.run(
        program, "-d", "4", "-i", str(images), "-o", str(output), "-c", configuration,
        "-f", *folds, "-tr", trainer, "-device", "cpu", "-npp", "1", "-nps", "1", *flags,
        timeout=LONGEST,
    )  # fmt: skip
    return read_segmentations(output)


def read_segmentations(folder: Path) -> dict[str, np.ndarray]:
    paths = sorted(folder.glob("*.nii.gz"))
    return {path.name: sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in paths}


def export(workspace, trainer, archive, configuration, folds):
    program = [sys.executable, "-m", "nnunet_unifiedloss"]
    output = workspace.run(
        *program, "export", "-d", "4", "-c", configuration, "-tr", trainer,
        "-f", *folds, "-o", str(archive), "--onnx",
    )  # fmt: skip
    print(output)
    print(workspace.run(*program, "verify", str(archive)))


def check_checkpoints(archive: Path, count: int) -> None:
    with zipfile.ZipFile(archive) as opened:
        names = [name for name in opened.namelist() if name.endswith(".pth")]
        for name in names:
            with opened.open(name) as file:
                checkpoint = torch.load(file, weights_only=True)
            assert checkpoint["trainer_name"] == "nnUNetTrainer"
            assert "optimizer_state" not in checkpoint
    assert len(names) == count


def check_identical(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert len(expected) == IMAGES
    assert found.keys() == expected.keys()
    for name, segmentation in expected.items():
        np.testing.assert_array_equal(found[name], segmentation, err_msg=name)
        assert segmentation.any(), name  # there is something to be identical


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize(
    ("scenario", "configuration", "trainer", "folds"),
    [
        ("plain", "2d", TRAINER, ("0", "1")),
        ("regions", "2d", TRAINER, ("0",)),
        ("ignore", "2d", TRAINER, ("0",)),
        ("plain", "3d_fullres", SHORT, ("0",)),
    ],
)
def test_it_predicts_the_same_without_this_package(
    test_data, tmp_path, stock, images, scenario, configuration, trainer, folds
):
    workspace = Workspace(tmp_path / "here")
    workspace.prepare(test_data, scenario, [configuration])
    for fold in folds:
        workspace.train(trainer, configuration, fold=fold, timeout=LONGEST)
    expected = predict(
        workspace, trainer, images, tmp_path / "expected", configuration, folds=folds
    )
    archive = tmp_path / "model.zip"
    export(workspace, trainer, archive, configuration, folds)
    check_checkpoints(archive, len(folds))

    other = elsewhere(workspace, tmp_path / "elsewhere")
    other.run(str(stock / "nnUNetv2_install_pretrained_model_from_zip"), str(archive))
    found = predict(
        other, trainer, images, tmp_path / "found", configuration, folds=folds, commands=stock
    )
    check_identical(found, expected)

    (graph,) = other.results.glob("*/*/onnx/checkpoint_final.onnx")
    (tmp_path / "onnx").mkdir()
    for name in expected:
        image = images / name.replace(".nii.gz", "_0000.nii.gz")
        other.run(
            sys.executable, str(SCRIPT), str(graph), str(tmp_path / "onnx" / name), str(image)
        )
    for name, segmentation in read_segmentations(tmp_path / "onnx").items():
        assert set(np.unique(segmentation)) == set(np.unique(expected[name]))
        for label in np.unique(segmentation)[1:]:
            agreement = dice(segmentation == label, expected[name] == label)
            print(scenario, configuration, name, label, f"Dice {agreement:.5f}")
            assert agreement >= 0.999


def test_a_cascade_predicts_the_same_without_this_package(test_data, tmp_path, stock, images):
    workspace = Workspace(tmp_path / "here")
    workspace.prepare(test_data, "plain", ["3d_lowres", "3d_fullres"])
    for fold in range(5):  # the second stage trains on the first one's cross-validated predictions
        workspace.train(SHORT, "3d_lowres", fold=fold, timeout=LONGEST)
    workspace.train(SHORT, "3d_cascade_fullres", timeout=LONGEST)
    archive = tmp_path / "model.zip"
    export(workspace, SHORT, archive, "3d_cascade_fullres", ("0",))
    check_checkpoints(archive, 2)
    other = elsewhere(workspace, tmp_path / "elsewhere")
    other.run(str(stock / "nnUNetv2_install_pretrained_model_from_zip"), str(archive))
    predictions = []
    for place, commands in ((workspace, None), (other, stock)):
        folder = place.results.parent
        first, second = folder / "first", folder / "second"
        predict(place, SHORT, images, first, "3d_lowres", commands=commands)
        predictions.append(
            predict(
                place, SHORT, images, second, "3d_cascade_fullres", commands=commands, stage=first
            )
        )
    check_identical(predictions[1], predictions[0])
    manifest = next(other.results.glob("*/*cascade*/manifest.json"))
    assert [model["configuration"] for model in json.loads(manifest.read_text())["models"]] == [
        "3d_lowres",
        "3d_cascade_fullres",
    ]
