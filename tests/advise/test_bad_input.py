"""Wrong input: one line that names the thing, the value and the remedy."""

from __future__ import annotations

import json

import numpy as np
import pytest

from nnunet_unifiedloss.cli import main
from tests.advise.conftest import write_dataset, write_plans

ARRAY = np.zeros((4, 8, 8), dtype=np.uint8)
ARRAY[1:3, 2:5, 2:5] = 1


def error_of(capsys, *words):
    assert main(["advise", "-np", "1", *words]) == 1
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.strip()]
    assert not out
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert "remedy: " in lines[0]
    return lines[0]


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("5", "data set 5: no folder Dataset005_…"),
        ("Dataset004_Tset", "data set Dataset004_Tset: there is no such folder"),
        ("test", "data set 'test': expected a number"),
    ],
)
def test_an_unknown_data_set(raw, capsys, given, shown):
    write_dataset(raw, [ARRAY])
    write_dataset(raw, [ARRAY], name="Dataset100_Liver")
    error = error_of(capsys, "-d", given)
    assert shown in error
    assert error.endswith("the closest is Dataset004_Test")


def test_no_folders_at_all(raw, capsys, monkeypatch):
    monkeypatch.delenv("nnUNet_raw")
    assert "nnU-Net's folders are not set" in error_of(capsys, "-d", "4")
    assert "nnU-Net's folders are not set" in error_of(capsys, "-d", "Dataset004_Test")


def test_no_labels(raw, preprocessed, capsys):
    folder = write_dataset(raw, [])
    error = error_of(capsys, "-d", "4")
    assert f"{folder / 'labelsTr'} has no file of labels" in error
    assert f"{preprocessed / 'Dataset004_Test'} has no dataset.json" in error


def test_only_background(raw, capsys):
    write_dataset(raw, [ARRAY * 0])
    assert "none of the 1 cases has any of the labels lesion" in error_of(capsys, "-d", "4")


@pytest.mark.parametrize(
    ("array", "value"),
    [
        (ARRAY * 3, "3"),
        (ARRAY * 2, "2"),
        (ARRAY.astype(np.int16) * -1, "-1"),
        (ARRAY * np.float32(0.5), "0.5"),
        (ARRAY.astype(np.uint32) * 65537, "65537"),
    ],
)
def test_labels_outside_of_the_description(raw, capsys, array, value):
    labels = {"lesion": 1, "ignore": 3} if value == "2" else {"lesion": 1}
    folder = write_dataset(raw, [ARRAY, array], labels)
    error = error_of(capsys, "-d", "4")
    assert f"case_1.nii.gz: holds the label {value}, but {folder / 'dataset.json'} lists" in error


def test_an_error_in_another_process(raw, capsys):
    write_dataset(raw, [ARRAY, ARRAY * 3])
    assert main(["advise", "-d", "4", "-np", "2"]) == 1
    err = capsys.readouterr().err
    assert "holds the label 3" in err
    assert "Traceback" not in err


def test_a_broken_file(raw, capsys):
    folder = write_dataset(raw, [ARRAY, ARRAY])
    (folder / "labelsTr" / "case_1.nii.gz").write_bytes(b"broken")
    assert "case_1.nii.gz: cannot be read" in error_of(capsys, "-d", "4")
    (folder / "labelsTr" / "case_0.nii.gz").write_bytes(b"broken")
    assert "case_0.nii.gz: no reader of nnU-Net reads it" in error_of(capsys, "-d", "4")


def test_an_unknown_configuration(raw, preprocessed, capsys):
    write_dataset(raw, [ARRAY])
    error = error_of(capsys, "-d", "4", "-c", "3d_fulres")
    assert "-c 3d_fulres" in error
    assert "remedy: -c 3d_fullres" in error
    write_plans(preprocessed, configurations={"2d": {}, "2d_small": {"inherits_from": "2d"}})
    error = error_of(capsys, "-d", "4", "-c", "3d_fullres")
    assert "nnUNetPlans.json has no such configuration, but 2d, 2d_small; remedy: -c 2d" in error
    error = error_of(capsys, "-d", "4", "-c", "2d_small")
    assert "configuration 2d_small has no spacing, patch_size or batch_size" in error


def test_a_configuration_with_three_axes_for_images_with_two(raw, capsys):
    write_dataset(raw, [ARRAY[1:2]])
    assert "no such configuration, but 2d;" in error_of(capsys, "-d", "4", "-c", "3d_fullres")


def test_unknown_plans(raw, preprocessed, capsys):
    write_dataset(raw, [ARRAY])
    write_plans(preprocessed, configurations={})
    error = error_of(capsys, "-d", "4", "-p", "nnUNetPlan")
    assert "-p nnUNetPlan: " in error
    assert "plans of this data set: nnUNetPlans" in error


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        ({"file_ending": ".nii.gz"}, "has no 'labels'"),
        ({"labels": {"background": 0, "a": 1}}, "has no 'file_ending'"),
        ({"labels": {"a": 1}, "file_ending": ".nii.gz"}, "without 'background': 0"),
        ({"labels": {"background": 0}, "file_ending": ".nii.gz"}, "without another label"),
        ({"labels": {"background": 0, "a": 1}, "file_ending": ".nrrd"}, "no file of labels"),
        ([], "has no 'labels'"),
    ],
)
def test_a_wrong_description(raw, capsys, content, shown):
    folder = write_dataset(raw, [ARRAY])
    (folder / "dataset.json").write_text(json.dumps(content))
    assert shown in error_of(capsys, "-d", "4")
