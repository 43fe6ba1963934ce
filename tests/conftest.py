"""Shared fixtures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from nnunet_unifiedloss.training.install import trainers_folder

# nnU-Net reads it when imported; each process of a validation would import PyTorch anew
os.environ.setdefault("nnUNet_def_n_proc", "1")
torch.set_num_threads(1)  # the tensors are small: threads would only wait for each other


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder with real data sets in nnU-Net's raw format."""
    folder = os.environ.get("UNIFIEDLOSS_TEST_DATA")
    if not folder or not (Path(folder) / "Dataset004_Hippocampus").is_dir():
        pytest.skip("UNIFIEDLOSS_TEST_DATA does not name a folder with Dataset004_Hippocampus")
    return Path(folder).resolve()


@pytest.fixture
def results(tmp_path, monkeypatch) -> Path:
    """An empty folder that ``nnUNet_results`` names, and nnU-Net finds our trainers."""
    folder = tmp_path / "results"
    folder.mkdir()
    monkeypatch.setenv("nnUNet_results", str(folder))
    monkeypatch.setenv("nnUNet_extTrainer", str(trainers_folder()))
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    return folder
