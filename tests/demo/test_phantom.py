"""The phantom data set."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_unifiedloss.demo import phantom
from tests.demo.conftest import TEST_CASES, TRAINING_CASES


def test_a_case_is_the_same_in_every_run_and_with_any_number_of_threads():
    image, labels = phantom.phantom_case(3)
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    try:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
        image_again, labels_again = phantom.phantom_case(3)
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    assert labels.tobytes() == labels_again.tobytes()
    assert image.tobytes() == image_again.tobytes()
    assert not np.array_equal(labels, phantom.phantom_case(4)[1])


def read(dataset: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    labels = [*(dataset / "labelsTr").iterdir(), *(dataset / "labelsTs").iterdir()]
    images = [
        path.parents[1] / path.parent.name.replace("labels", "images") / name
        for path in labels
        for name in [path.name.replace(".nii.gz", "_0000.nii.gz")]
    ]
    return [
        (phantom.read_array(image), phantom.read_array(path))
        for image, path in zip(images, labels, strict=True)
    ]


def check_cases(dataset: Path, number: int) -> None:
    """Check that the smallest region is rare and the regions are nested."""
    cases = read(dataset)
    assert len(cases) == number
    shares = [(labels == phantom.LABELS["enhancing"]).mean() for _, labels in cases]
    assert 0 < np.mean(shares) < 0.005
    regions = list(phantom.REGIONS.values())
    assert all(set(inner) < set(outer) for outer, inner in itertools.pairwise(regions))
    for image, labels in cases:
        assert set(np.unique(labels)) == {0, *phantom.LABELS.values()}
        assert (image[labels > 0] > 0).all()
        core = np.isin(labels, phantom.REGIONS["tumour_core"])
        assert core.sum() < (labels > 0).sum() < (image > 0).sum() / 2


def test_smallest_region_is_rare_and_regions_are_nested(dataset):
    check_cases(dataset, TRAINING_CASES + TEST_CASES)


@pytest.mark.slow
def test_all_cases_are_as_the_first(whole_dataset):
    check_cases(whole_dataset, phantom.TRAINING_CASES + phantom.TEST_CASES)


def test_files_share_one_geometry(dataset):
    for split, number in (("Tr", TRAINING_CASES), ("Ts", TEST_CASES)):
        labels = sorted((dataset / f"labels{split}").iterdir())
        assert len(labels) == number
        for path in labels:
            image = dataset / f"images{split}" / path.name.replace(".nii.gz", "_0000.nii.gz")
            one, other = sitk.ReadImage(str(path)), sitk.ReadImage(str(image))
            assert one.GetSize() == other.GetSize() == phantom.SHAPE[::-1]
            assert one.GetSpacing() == other.GetSpacing() == (1, 1, 1)
            assert one.GetOrigin() == other.GetOrigin()


@pytest.mark.slow
def test_nnunet_accepts_the_dataset(whole_dataset, capsys):
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    verify_dataset_integrity(str(whole_dataset), num_processes=1)
    assert "Error" not in capsys.readouterr().out


def test_nnunet_trains_on_the_regions(dataset):
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    content = json.loads((dataset / "dataset.json").read_text())
    manager = LabelManager(content["labels"], content["regions_class_order"])
    assert manager.has_regions
    assert manager.foreground_regions == [(1, 2, 3), (2, 3), 3]


def test_an_interrupted_dataset_leaves_nothing(tmp_path, monkeypatch):
    def fail(folder: Path, split: str, number: int) -> None:
        folder.mkdir()
        raise OSError("disk full")

    monkeypatch.setattr(phantom, "_write_case", fail)
    with pytest.raises(OSError, match="disk full"):
        phantom.write_phantom_dataset(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_dataset_is_not_replaced(tmp_path):
    (tmp_path / phantom.DATASET_NAME).mkdir()
    (tmp_path / phantom.DATASET_NAME / "dataset.json").touch()
    folder = phantom.write_phantom_dataset(tmp_path)
    assert [path.name for path in folder.iterdir()] == ["dataset.json"]


def test_an_incomplete_dataset_is_an_error(tmp_path):
    (tmp_path / phantom.DATASET_NAME / "imagesTr").mkdir(parents=True)
    with pytest.raises(FileExistsError, match=r"has lost its dataset.json; remove it"):
        phantom.write_phantom_dataset(tmp_path)
    assert (tmp_path / phantom.DATASET_NAME / "imagesTr").exists()
