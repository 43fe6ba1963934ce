"""The phantom data set and the guided run on it."""

from __future__ import annotations

import gzip
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from matplotlib.image import imread
from rich.console import Console

from nnunet_unifiedloss import demo, demo_commands, phantom
from nnunet_unifiedloss.demo_result import as_rich_table, dice_score, dice_table, draw_predictions

NETWORK = {
    "n_stages": 4,
    "features_per_stage": [32, 64, 128, 256],
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
}
PLANS = {
    "configurations": {
        "3d_fullres": {
            "data_identifier": "nnUNetPlans_3d_fullres",
            "architecture": {"arch_kwargs": NETWORK},
        }
    }
}
BASELINE = "nnUNetTrainer_5epochs"
OURS = "nnUNetTrainerUnifiedFocal_5epochs"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phantom.write_phantom_dataset(tmp_path_factory.mktemp("raw"))


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


# The phantom


def test_phantom_is_the_same_in_every_run_and_with_any_number_of_threads():
    first = phantom.phantom_case(3)
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    try:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
        second = phantom.phantom_case(3)
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    assert first.labels.tobytes() == second.labels.tobytes()
    assert first.image.tobytes() == second.image.tobytes()
    assert not np.array_equal(first.labels, phantom.phantom_case(4).labels)


def test_phantom_refuses_negative_numbers():
    with pytest.raises(ValueError, match="number must be 0 or above, but is -1"):
        phantom.phantom_case(-1)


def test_smallest_region_is_rare_and_regions_are_nested(dataset):
    cases = {**phantom.read_cases(dataset, "Tr"), **phantom.read_cases(dataset, "Ts")}
    assert len(cases) == phantom.TRAINING_CASES + phantom.TEST_CASES
    shares = [(case.labels == phantom.LABELS["enhancing"]).mean() for case in cases.values()]
    assert 0 < np.mean(shares) < 0.005
    regions = list(phantom.REGIONS.values())
    assert all(set(inner) < set(outer) for outer, inner in zip(regions, regions[1:], strict=False))
    for case in cases.values():
        assert set(np.unique(case.labels)) == {0, *phantom.LABELS.values()}
        assert (case.image[case.labels > 0] > 0).all()
        core = np.isin(case.labels, phantom.REGIONS["tumour_core"])
        assert core.sum() < (case.labels > 0).sum() < (case.image > 0).sum() / 2


def test_phantom_files_share_one_geometry(dataset):
    for split, number in (("Tr", phantom.TRAINING_CASES), ("Ts", phantom.TEST_CASES)):
        labels = sorted((dataset / f"labels{split}").iterdir())
        assert len(labels) == number
        for path in labels:
            image = dataset / f"images{split}" / path.name.replace(".nii.gz", "_0000.nii.gz")
            one, other = sitk.ReadImage(str(path)), sitk.ReadImage(str(image))
            assert one.GetSize() == other.GetSize() == phantom.SHAPE[::-1]
            assert one.GetSpacing() == other.GetSpacing() == (1, 1, 1)
            assert one.GetOrigin() == other.GetOrigin()


def test_nnunet_accepts_the_dataset(dataset, capsys):
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    verify_dataset_integrity(str(dataset), num_processes=1)
    assert "Error" not in capsys.readouterr().out
    content = json.loads((dataset / "dataset.json").read_text())
    manager = LabelManager(content["labels"], content["regions_class_order"])
    assert manager.has_regions
    assert manager.foreground_regions == [(1, 2, 3), (2, 3), 3]


def test_dataset_is_whole_or_absent(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as broken:
        broken.setattr(phantom, "_dataset_json", fail)
        with pytest.raises(OSError, match="disk full"):
            phantom.write_phantom_dataset(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_dataset_that_is_there_is_left_alone(tmp_path):
    (tmp_path / phantom.DATASET_NAME).mkdir()
    folder = phantom.write_phantom_dataset(tmp_path)
    assert list(folder.iterdir()) == []


# Arguments


def test_baselines_are_nnunets_own_trainers():
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    baselines = demo.baseline_trainers()
    assert baselines[1] == "nnUNetTrainer_1epoch"
    assert baselines[5] == "nnUNetTrainer_5epochs"
    assert list(baselines) == sorted(baselines)
    for epochs in (1, 5, max(baselines)):
        assert recursive_find_trainer_class_by_name(baselines[epochs]).__name__ == baselines[epochs]


@pytest.mark.parametrize("epochs", [0, -5, 3])
def test_epochs_without_a_baseline_are_refused(tmp_path, console, epochs):
    with pytest.raises(ValueError, match=rf"epochs is {epochs}, .* 1, 5, 10, .*; choose one"):
        demo.run_demo(tmp_path / "demo", epochs=epochs, console=console)
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize("device", ["gpu", "cuda:1", ""])
def test_unknown_devices_are_refused(tmp_path, console, device):
    with pytest.raises(ValueError, match=f"device is {device!r}, but must be one of cpu, cuda"):
        demo.run_demo(tmp_path / "demo", device=device, console=console)
    assert not (tmp_path / "demo").exists()


def test_absent_gpu_is_refused(tmp_path, console, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match="no CUDA device; use cpu instead"):
        demo.run_demo(tmp_path / "demo", device="cuda", console=console)


def test_folders_of_others_are_refused_and_left_alone(tmp_path, console):
    (tmp_path / "thesis.tex").write_text("final")
    with pytest.raises(ValueError, match="is not empty and not from an earlier demo"):
        demo.run_demo(tmp_path, console=console)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_files_are_refused_as_folder(tmp_path, console):
    (tmp_path / "demo").write_text("")
    with pytest.raises(ValueError, match=r"demo cannot be used \(File exists\)"):
        demo.run_demo(tmp_path / "demo", console=console)


def test_demos_of_other_versions_are_refused(tmp_path, console):
    (tmp_path / demo.MARKER).write_text('{"format": 0}\n')
    with pytest.raises(ValueError, match="another version of nnunet-unifiedloss"):
        demo.run_demo(tmp_path, console=console)


# The steps, with something quick in nnU-Net's place


class FakeNnunet:
    """Writes what nnU-Net's commands leave behind, at once, and remembers the commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.commands: list[str] = []
        self.interrupt_at = ""

    def __call__(self, command: Sequence[str], log: Path, **options: object) -> None:
        self.commands.append(shlex.join(command))
        self.settings = options["settings"]
        arguments = dict(zip(command, command[1:], strict=False))
        actions: Mapping[str, Callable[[Mapping[str, str]], None]] = {
            "nnUNetv2_plan_and_preprocess": self.plan,
            "nnUNetv2_train": self.train,
            "nnUNetv2_predict": self.predict,
        }
        actions[command[0]](arguments)

    def plan(self, _: Mapping[str, str]) -> None:
        folder = self.folder / "nnUNet_preprocessed" / phantom.DATASET_NAME
        folder.mkdir(parents=True)
        (folder / "nnUNetPlans.json").write_text(json.dumps(PLANS))

    def output(self, trainer: str) -> Path:
        model = f"{trainer}__nnUNetPlans__3d_demo"
        return self.folder / "nnUNet_results" / phantom.DATASET_NAME / model / "fold_0"

    def checkpoint(self, trainer: str, name: str) -> Path:
        path = self.output(trainer) / f"checkpoint_{name}.pth"
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("data.pkl", "weights")
        return path

    def train(self, arguments: Mapping[str, str]) -> None:
        trainer = arguments["-tr"]
        self.checkpoint(trainer, "best")
        if self.interrupt_at == trainer:
            raise KeyboardInterrupt
        self.checkpoint(trainer, "final")
        validation = self.output(trainer) / "validation"
        validation.mkdir()
        (validation / "summary.json").write_text("{}")

    def predict(self, arguments: Mapping[str, str]) -> None:
        reference = Path(arguments["-i"]).parent / "labelsTs"
        shutil.copytree(reference, arguments["-o"], copy_function=shutil.copyfile)


@pytest.fixture
def nnunet(tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNnunet:
    fake = FakeNnunet(tmp_path / "demo")
    monkeypatch.setattr(demo, "run_command", fake)
    fake.folder.mkdir()
    (fake.folder / demo.MARKER).write_text(demo.MARKER_TEXT)
    shutil.copytree(dataset, fake.folder / "nnUNet_raw" / phantom.DATASET_NAME)
    return fake


def test_demo_runs_the_commands_that_it_prints(nnunet, console):
    result = demo.run_demo(nnunet.folder, console=console)
    text = printed(console)
    assert [shlex.split(command)[0] for command in nnunet.commands] == [
        "nnUNetv2_plan_and_preprocess",
        *["nnUNetv2_train"] * 2,
        *["nnUNetv2_predict"] * 2,
    ]
    assert f"nnUNetv2_train 900 3d_demo 0 -tr {BASELINE} -device cpu" in nnunet.commands
    assert f"nnUNetv2_train 900 3d_demo 0 -tr {OURS} -device cpu" in nnunet.commands
    lines = text.splitlines()
    assert all(command in lines for command in nnunet.commands)
    assert f"export nnUNet_raw={nnunet.folder / 'nnUNet_raw'}" in lines
    assert 'export nnUNet_extTrainer="$(nnunet-unifiedloss path)"' in lines
    for name in nnunet.settings:
        assert sum(line.startswith(f"export {name}=") for line in lines) == 1
    assert list(result.dice[BASELINE]) == [1.0] * 6
    assert result.picture == nnunet.folder / "demo.png"
    assert "enhancing_tumour" in text


def test_demo_adds_a_small_configuration_to_the_plans(nnunet, console):
    demo.run_demo(nnunet.folder, console=console)
    path = nnunet.folder / "nnUNet_preprocessed" / phantom.DATASET_NAME / "nnUNetPlans.json"
    plans = json.loads(path.read_text())
    small = plans["configurations"].pop("3d_demo")
    assert plans == PLANS
    assert small["inherits_from"] == "3d_fullres"
    assert "data_identifier" not in small
    network = small["architecture"]["arch_kwargs"]
    assert network["norm_op"] == NETWORK["norm_op"]
    downsampling = np.prod(network["strides"], axis=0)
    assert not (np.array(small["patch_size"]) % downsampling).any()
    assert str(path) in printed(console)
    assert "inherits from 3d_fullres" in printed(console)


def test_finished_demo_repeats_nothing(nnunet, console):
    demo.run_demo(nnunet.folder, console=console)
    nnunet.commands.clear()
    demo.run_demo(nnunet.folder, console=console)
    assert nnunet.commands == []
    assert printed(console).count("done before, skipped") == 5


def test_other_epochs_are_trained_beside(nnunet, console):
    demo.run_demo(nnunet.folder, console=console)
    nnunet.commands.clear()
    result = demo.run_demo(nnunet.folder, epochs=1, console=console)
    assert len(nnunet.commands) == 4
    assert {"nnUNetTrainer_1epoch", "nnUNetTrainerUnifiedFocal_1epochs"} < set(result.dice)
    assert nnunet.output(BASELINE).is_dir()


def test_interrupted_training_goes_on(nnunet, console):
    nnunet.interrupt_at = OURS
    with pytest.raises(KeyboardInterrupt):
        demo.run_demo(nnunet.folder, console=console)
    nnunet.interrupt_at = ""
    nnunet.commands.clear()
    demo.run_demo(nnunet.folder, console=console)
    assert nnunet.commands[0] == f"nnUNetv2_train 900 3d_demo 0 -tr {OURS} -device cpu --c"
    assert len(nnunet.commands) == 3


def test_training_without_validation_is_only_validated(nnunet, console):
    nnunet.checkpoint(BASELINE, "final")
    demo.run_demo(nnunet.folder, console=console)
    assert nnunet.commands[1].endswith(f"-tr {BASELINE} -device cpu --val")


def test_checkpoints_cut_off_are_not_continued(nnunet, console):
    broken = nnunet.checkpoint(BASELINE, "best")
    broken.write_bytes(broken.read_bytes()[:-10])
    demo.run_demo(nnunet.folder, console=console)
    assert nnunet.commands[1].endswith(f"-tr {BASELINE} -device cpu")


def test_preprocessing_cut_off_is_repeated(nnunet, console):
    nnunet.plan({})
    plans = nnunet.folder / "nnUNet_preprocessed" / phantom.DATASET_NAME / "nnUNetPlans.json"
    for content in (json.dumps(PLANS), '{"configurations": {"3d_'):
        plans.write_text(content)
        nnunet.commands.clear()
        demo.run_demo(nnunet.folder, console=console)
        assert nnunet.commands[0].startswith("nnUNetv2_plan_and_preprocess -d 900")


@pytest.mark.parametrize("harm", ["missing", "cut off", "older than the model"])
def test_unusable_predictions_are_repeated(nnunet, console, harm):
    demo.run_demo(nnunet.folder, console=console)
    prediction = sorted((nnunet.folder / "predictions" / OURS).glob("*.nii.gz"))[-1]
    if harm == "missing":
        prediction.unlink()
    elif harm == "cut off":
        prediction.write_bytes(prediction.read_bytes()[:-20])
    else:
        os.utime(prediction, (0, 0))
    nnunet.commands.clear()
    shutil.rmtree(prediction.parent, ignore_errors=harm == "never")
    prediction.parent.mkdir()
    shutil.rmtree(prediction.parent)
    demo.run_demo(nnunet.folder, console=console)
    assert len(nnunet.commands) == 1


def test_step_without_results_is_an_error(nnunet, console, monkeypatch):
    monkeypatch.setattr(nnunet, "train", lambda _: None)
    with pytest.raises(RuntimeError, match=r"(?s)nnUNetv2_train .*ended without its results.*log"):
        demo.run_demo(nnunet.folder, console=console)
