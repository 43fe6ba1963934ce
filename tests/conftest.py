"""Shared fixtures."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)  # the tensors are small: threads would only wait for each other


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder with real data sets in nnU-Net's raw format."""
    folder = os.environ.get("UNIFIEDLOSS_TEST_DATA")
    if not folder or not (Path(folder) / "Dataset004_Hippocampus").is_dir():
        pytest.skip("UNIFIEDLOSS_TEST_DATA does not name a folder with Dataset004_Hippocampus")
    return Path(folder).resolve()
