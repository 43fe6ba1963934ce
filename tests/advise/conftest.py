"""Small data sets in nnU-Net's raw format."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """An empty folder that ``nnUNet_raw`` names; nnU-Net's other folders are not set."""
    folder = tmp_path / "raw"
    folder.mkdir()
    monkeypatch.setenv("nnUNet_raw", str(folder))
    for name in ("nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def preprocessed(tmp_path, monkeypatch):
    """An empty folder that ``nnUNet_preprocessed`` names."""
    folder = tmp_path / "preprocessed"
    folder.mkdir()
    monkeypatch.setenv("nnUNet_preprocessed", str(folder))
    return folder


def write_dataset(
    root, arrays, labels=None, *, name="Dataset004_Test", spacing=(1, 1, 1), to="labelsTr", **keys
):
    """Write label images and a ``dataset.json``; the spacing is that of NumPy's axes."""
    folder = root / name
    (folder / to).mkdir(parents=True)
    for index, array in enumerate(arrays):
        image = sitk.GetImageFromArray(np.asarray(array))
        image.SetSpacing([float(step) for step in spacing[::-1]])
        sitk.WriteImage(image, folder / to / f"case_{index}.nii.gz")
    content = {"labels": {"background": 0} | (labels or {"lesion": 1}), "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(content | keys))
    return folder


def write_plans(root, *, name="Dataset004_Test", configurations, axes=(0, 1, 2)):
    """Write the part of nnU-Net's plans that ``advise`` reads."""
    (root / name).mkdir(exist_ok=True)
    content = {"transpose_forward": list(axes), "configurations": configurations}
    (root / name / "nnUNetPlans.json").write_text(json.dumps(content))
