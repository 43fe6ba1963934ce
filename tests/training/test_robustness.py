"""Every trainer on the worst data set that one can meet: it must never train to NaN.

Cases without any foreground, lesions of a single voxel, a class that only one case has, images of
odd sizes, volumes of one voxel's thickness.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image

from nnunet_unifiedloss.training.catalogue import catalogue
from tests.helpers.nnunet_workspace import Workspace, shrink

ITERATIONS = 20
VOLUMES = [(1, 33, 41), (12, 40, 27), (1, 29, 37), (14, 31, 35), (16, 33, 33), (1, 37, 45)]
IMAGES = [(33, 47), (51, 39), (35, 35), (64, 31), (45, 57), (37, 41)]
DATASETS = {"volumes": "Dataset011_Volumes", "images": "Dataset012_Images"}


def labels_of(shape: tuple[int, ...], number: int) -> np.ndarray:
    """Cases 0 and 1 are empty, 2 and 3 have a single voxel, class 2 is in case 4 only.

    Of the volumes of one voxel's thickness one is empty, one has a single voxel, one a lesion.
    """
    labels = np.zeros(shape, np.uint8)
    centre = tuple(length // 2 for length in shape)
    if number in (2, 3):
        labels[centre] = 1
    elif number > 3:
        labels[tuple(slice(c - min(c, 3), c + 4) for c in centre)] = 1
    if number == 4:
        labels[centre] = 2
    return labels


def write_case(folder: Path, name: str, labels: np.ndarray, ending: str) -> None:
    generator = np.random.default_rng(len(name))
    image = 50 * labels + generator.normal(100, 20, labels.shape)
    files = {folder / "imagesTr" / f"{name}_0000{ending}": image,
             folder / "labelsTr" / f"{name}{ending}": labels}  # fmt: skip
    for path, array in files.items():
        if ending == ".png":
            Image.fromarray(array.clip(0, 255).astype(np.uint8)).save(path)
        else:
            kind = np.uint8 if array is labels else np.float32
            sitk.WriteImage(sitk.GetImageFromArray(array.astype(kind)), str(path))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """Both data sets, planned and preprocessed for small networks."""
    made = Workspace(tmp_path_factory.mktemp("worst"))
    for kind, dataset in DATASETS.items():
        folder = made.raw / dataset
        ending = ".png" if kind == "images" else ".nii.gz"
        for name in ("imagesTr", "labelsTr"):
            (folder / name).mkdir(parents=True)
        for number, shape in enumerate(IMAGES if kind == "images" else VOLUMES):
            write_case(folder, f"case_{number}", labels_of(shape, number), ending)
        description = {
            "channel_names": {"0": "CT"} if kind == "volumes" else {"0": "grey"},
            "labels": {"background": 0, "lesion": 1, "rare": 2},
            "numTraining": 6,
            "file_ending": ending,
        }
        (folder / "dataset.json").write_text(json.dumps(description))
        number = dataset[7:10].lstrip("0")
        made.run("nnUNetv2_plan_and_preprocess", "-d", number, "-np", "2", "-npfp", "2", "--no_pp")
        plans_file = made.preprocessed / dataset / "nnUNetPlans.json"
        plans = json.loads(plans_file.read_text())
        shrink(plans["configurations"])
        plans_file.write_text(json.dumps(plans))
        configurations = ["2d"] if kind == "images" else ["2d", "3d_fullres"]
        made.run("nnUNetv2_preprocess", "-d", number, "-np", "2", "-c", *configurations)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("entry", catalogue(), ids=lambda entry: entry.loss)
@pytest.mark.parametrize(
    ("kind", "configuration"), [("images", "2d"), ("volumes", "2d"), ("volumes", "3d_fullres")]
)
def test_never_nan(workspace, monkeypatch, kind, configuration, entry):
    from nnunetv2.run.run_training import run_training

    for name, value in workspace.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")  # no workers: this process does it all
    trainer = f"{entry.trainer}_1epochs_{ITERATIONS}iters"
    # all cases in one fold: a network that never saw a class is no better than one that did
    arguments = DATASETS[kind], configuration, "all", trainer
    run_training(*arguments, device=torch.device("cpu"))
    model = workspace.results / DATASETS[kind] / f"{trainer}__nnUNetPlans__{configuration}"
    fold = model / "fold_all"
    checkpoint = torch.load(fold / "checkpoint_final.pth", weights_only=False)
    for name, weights in checkpoint["network_weights"].items():
        assert torch.isfinite(weights).all(), name
    logged = checkpoint["logging"]
    assert np.isfinite([*logged["train_losses"], *logged["val_losses"]]).all()
    log = "".join(path.read_text() for path in fold.glob("training_log*.txt"))
    assert "nan" not in log.partition("Pseudo dice")[0].lower().partition("epoch 0")[2]
    summary = json.loads((fold / "validation" / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == 6
