"""The phantom data set, with few of its cases."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnunet_unifiedloss.demo import phantom

TRAINING_CASES, TEST_CASES = 4, 1


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phantom, "TRAINING_CASES", TRAINING_CASES)
        patch.setattr(phantom, "TEST_CASES", TEST_CASES)
        return phantom.write_phantom_dataset(tmp_path_factory.mktemp("raw"))


@pytest.fixture(scope="session")
def whole_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phantom.write_phantom_dataset(tmp_path_factory.mktemp("raw"))
