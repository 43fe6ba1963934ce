"""The phantom data set, written once."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnunet_unifiedloss.demo import phantom


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phantom.write_phantom_dataset(tmp_path_factory.mktemp("raw"))
