"""The phantom data set and the guided run on it."""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
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

from nnunet_unifiedloss.demo import commands, phantom, run
from nnunet_unifiedloss.demo.result import as_rich_table, dice_score, dice_table, draw_predictions

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
    assert all(set(inner) < set(outer) for outer, inner in itertools.pairwise(regions))
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
    (tmp_path / phantom.DATASET_NAME / "dataset.json").touch()
    folder = phantom.write_phantom_dataset(tmp_path)
    assert [path.name for path in folder.iterdir()] == ["dataset.json"]


def test_dataset_that_is_not_whole_is_an_error(tmp_path):
    (tmp_path / phantom.DATASET_NAME / "imagesTr").mkdir(parents=True)
    with pytest.raises(FileExistsError, match=r"has lost its dataset.json; remove it"):
        phantom.write_phantom_dataset(tmp_path)
    assert (tmp_path / phantom.DATASET_NAME / "imagesTr").exists()


# Arguments


def test_baselines_are_nnunets_own_trainers():
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    baselines = run.baseline_trainers()
    assert baselines[1] == "nnUNetTrainer_1epoch"
    assert baselines[5] == "nnUNetTrainer_5epochs"
    assert list(baselines) == sorted(baselines)
    for epochs in (1, 5, max(baselines)):
        assert recursive_find_trainer_class_by_name(baselines[epochs]).__name__ == baselines[epochs]


@pytest.mark.parametrize("epochs", [0, -5, 3])
def test_epochs_without_a_baseline_are_refused(tmp_path, console, epochs):
    with pytest.raises(ValueError, match=rf"epochs is {epochs}, .* 1, 5, 10, .*; choose one"):
        run.run_demo(tmp_path / "demo", epochs=epochs, console=console)
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize("device", ["gpu", "cuda:1", ""])
def test_unknown_devices_are_refused(tmp_path, console, device):
    with pytest.raises(
        ValueError, match=f"device is {device!r}, but must be one of cuda, mps, cpu"
    ):
        run.run_demo(tmp_path / "demo", device=device, console=console)
    assert not (tmp_path / "demo").exists()


def test_absent_gpu_is_refused(tmp_path, console, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match="no CUDA device; use cpu instead"):
        run.run_demo(tmp_path / "demo", device="cuda", console=console)


def test_folders_of_others_are_refused_and_left_alone(tmp_path, console):
    (tmp_path / "thesis.tex").write_text("final")
    with pytest.raises(ValueError, match="is not empty and not from an earlier demo"):
        run.run_demo(tmp_path, console=console)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_files_are_refused_as_folder(tmp_path, console):
    (tmp_path / "demo").write_text("")
    with pytest.raises(ValueError, match=r"demo cannot be used \(File exists\)"):
        run.run_demo(tmp_path / "demo", console=console)


def test_demos_of_other_versions_are_refused(tmp_path, console):
    (tmp_path / run.MARKER).write_text('{"format": 0}\n')
    with pytest.raises(ValueError, match="another version of nnunet-unifiedloss"):
        run.run_demo(tmp_path, console=console)


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
        arguments = dict(itertools.pairwise(command))
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
        shutil.copytree(
            reference, arguments["-o"], copy_function=shutil.copyfile, dirs_exist_ok=True
        )


@pytest.fixture
def nnunet(tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNnunet:
    fake = FakeNnunet(tmp_path / "demo")
    monkeypatch.setattr(run, "run_command", fake)
    fake.folder.mkdir()
    (fake.folder / run.MARKER).write_text(run.MARKER_TEXT)
    shutil.copytree(dataset, fake.folder / "nnUNet_raw" / phantom.DATASET_NAME)
    return fake


def test_demo_runs_the_commands_that_it_prints(nnunet, console):
    result = run.run_demo(nnunet.folder, console=console)
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
    run.run_demo(nnunet.folder, console=console)
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
    run.run_demo(nnunet.folder, console=console)
    nnunet.commands.clear()
    run.run_demo(nnunet.folder, console=console)
    assert nnunet.commands == []
    assert printed(console).count("done before, skipped") == 5


def test_other_epochs_are_trained_beside(nnunet, console):
    run.run_demo(nnunet.folder, console=console)
    nnunet.commands.clear()
    result = run.run_demo(nnunet.folder, epochs=1, console=console)
    assert len(nnunet.commands) == 4
    assert {"nnUNetTrainer_1epoch", "nnUNetTrainerUnifiedFocal_1epochs"} < set(result.dice)
    assert nnunet.output(BASELINE).is_dir()


def test_interrupted_training_goes_on(nnunet, console):
    nnunet.interrupt_at = OURS
    with pytest.raises(KeyboardInterrupt):
        run.run_demo(nnunet.folder, console=console)
    nnunet.interrupt_at = ""
    nnunet.commands.clear()
    run.run_demo(nnunet.folder, console=console)
    assert nnunet.commands[0] == f"nnUNetv2_train 900 3d_demo 0 -tr {OURS} -device cpu --c"
    assert len(nnunet.commands) == 3


def test_training_without_validation_is_only_validated(nnunet, console):
    nnunet.checkpoint(BASELINE, "final")
    run.run_demo(nnunet.folder, console=console)
    assert nnunet.commands[1].endswith(f"-tr {BASELINE} -device cpu --val")


def test_checkpoints_cut_off_are_not_continued(nnunet, console):
    broken = nnunet.checkpoint(BASELINE, "best")
    broken.write_bytes(broken.read_bytes()[:-10])
    run.run_demo(nnunet.folder, console=console)
    assert nnunet.commands[1].endswith(f"-tr {BASELINE} -device cpu")


def test_preprocessing_cut_off_is_repeated(nnunet, console):
    nnunet.plan({})
    plans = nnunet.folder / "nnUNet_preprocessed" / phantom.DATASET_NAME / "nnUNetPlans.json"
    for content in (json.dumps(PLANS), '{"configurations": {"3d_'):
        plans.write_text(content)
        nnunet.commands.clear()
        run.run_demo(nnunet.folder, console=console)
        assert nnunet.commands[0].startswith("nnUNetv2_plan_and_preprocess -d 900")


@pytest.mark.parametrize("harm", ["missing", "cut off", "older than the model"])
def test_unusable_predictions_are_repeated(nnunet, console, harm):
    run.run_demo(nnunet.folder, console=console)
    prediction = sorted((nnunet.folder / "predictions" / OURS).glob("*.nii.gz"))[-1]
    if harm == "missing":
        prediction.unlink()
    elif harm == "cut off":
        prediction.write_bytes(prediction.read_bytes()[:-20])
    else:
        os.utime(prediction, (0, 0))
    nnunet.commands.clear()
    run.run_demo(nnunet.folder, console=console)
    assert len(nnunet.commands) == 1


def test_step_without_results_is_an_error(nnunet, console, monkeypatch):
    monkeypatch.setattr(nnunet, "train", lambda _: None)
    with pytest.raises(RuntimeError, match=r"(?s)nnUNetv2_train .*ended without its results.*log"):
        run.run_demo(nnunet.folder, console=console)


# Running a command


def run_python(code: str, log: Path, console: Console, *, epochs: int | None = None) -> None:
    settings = {"DEMO_TEST": "set"}
    command = ["python", "-c", code]
    commands.run_command(
        command, log, settings=settings, title="title", epochs=epochs, console=console
    )


def test_output_and_settings_reach_the_log(tmp_path, console):
    log = tmp_path / "logs" / "some.log"
    run_python("import os, sys; print(os.environ['DEMO_TEST']); sys.exit(0)", log, console)
    assert log.read_text() == "set\n"


def test_failing_command_is_explained(tmp_path, console):
    log = tmp_path / "some.log"
    code = "for i in range(30): print('line', i)\nraise SystemExit(3)"
    with pytest.raises(RuntimeError, match="failed with exit status 3") as caught:
        run_python(code, log, console)
    message = str(caught.value)
    assert shlex.join(["python", "-c", code]) in message
    assert "line 15\n" in message
    assert "line 29\n" in message
    assert "line 14\n" not in message
    assert str(log) in message
    assert "run the demo again" in message


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
@pytest.mark.parametrize(
    ("name", "ending"), [("SIGKILL", "killed, .* memory runs out"), ("SIGTERM", "signal SIGTERM")]
)
def test_commands_ended_by_a_signal_are_explained(tmp_path, console, name, ending):
    code = f"import os, signal; os.kill(os.getpid(), signal.{name})"
    with pytest.raises(RuntimeError, match=f"this command was .*{ending}"):
        run_python(code, tmp_path / "some.log", console)


def test_first_error_is_named(tmp_path, console):
    code = (
        "import traceback\n"
        "try: {}['the cause']\n"
        "except KeyError: traceback.print_exc()\n"
        "raise RuntimeError('workers are no longer alive')"
    )
    with pytest.raises(RuntimeError, match="The first error in its output: KeyError: 'the cause'"):
        run_python(code, tmp_path / "some.log", console)


def test_absent_command_is_explained(tmp_path, console):
    with pytest.raises(RuntimeError, match=r"nnUNetv2_none is neither in .* pip install nnunetv2"):
        commands.run_command(
            ["nnUNetv2_none"], tmp_path / "log", settings={}, title="title", console=console
        )


def test_epochs_are_shown_live(tmp_path):
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    code = (
        "import time\n"
        "for epoch in range(2):\n"
        "    print(f'2026-01-01 00:00:00.0: Epoch {epoch}')\n"
        "    time.sleep(1)\n"
        "    print('2026-01-01 00:00:00.0: Epoch time: 1 s')\n"
        "print('2026-01-01 00:00:00.0: Training done.')\n"
        "time.sleep(1)\n"
    )
    run_python(code, tmp_path / "log", console, epochs=2)
    for state in ("epoch 1 of 2", "epoch 2 of 2", "validation"):
        assert f"title, {state}" in printed(console)


CHILD_WITH_WORKER = """
import subprocess, sys, time
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(worker.pid, flush=True)
{end}
"""


def ends(process: int) -> bool:
    """Whether the process is gone within seconds: a killed one takes its time."""
    state = Path(f"/proc/{process}/stat")
    for _ in range(100):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if state.read_text().rsplit(")", 1)[1].split()[0] != "Z":
                time.sleep(0.05)
                continue
        return True
    return False


@pytest.fixture
def default_sigint():
    """Ctrl-C interrupts, also where the tests run in the background and a shell has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_ends_the_command_and_its_workers(tmp_path, console, number, default_sigint):
    log = tmp_path / "log"

    def interrupt() -> None:
        while not (log.exists() and log.read_text().endswith("\n")):
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run_python(CHILD_WITH_WORKER.format(end="time.sleep(60)"), log, console)
    assert ends(int(log.read_text()))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
def test_workers_of_a_command_that_died_are_ended(tmp_path, console):
    log = tmp_path / "log"
    with pytest.raises(RuntimeError, match="exit status 1"):
        run_python(CHILD_WITH_WORKER.format(end="import os; os._exit(1)"), log, console)
    assert ends(int(log.read_text()))


# Table and picture


def synthetic_case() -> phantom.PhantomCase:
    labels = np.zeros(phantom.SHAPE, np.uint8)
    labels[10:20, 20:30, 20:30] = phantom.LABELS["edema"]
    labels[12:18, 22:28, 22:28] = phantom.LABELS["non-enhancing core"]
    labels[14:16, 23:27, 23:27] = phantom.LABELS["enhancing"]
    image = np.random.default_rng(0).integers(100, 400, phantom.SHAPE).astype(np.int16)
    return phantom.PhantomCase(image, labels)


def test_dice_score():
    one, other = np.array([1, 1, 0, 0], bool), np.array([0, 1, 1, 1], bool)
    assert dice_score(one, other) == pytest.approx(2 / 5)
    assert dice_score(one, one) == 1
    assert dice_score(one, ~one) == 0
    assert np.isnan(dice_score(one & False, one & False))


def test_dice_table_by_region_and_class():
    case = synthetic_case()
    lost = np.where(case.labels == phantom.LABELS["enhancing"], 2, case.labels)
    nothing = phantom.PhantomCase(case.image, np.zeros_like(case.labels))
    cases = {"a": case, "b": nothing}
    predictions = {
        "baseline": {"a": lost, "b": nothing.labels},
        "ours": {"a": case.labels, "b": nothing.labels},
    }
    table = dice_table(cases, predictions)
    assert list(table.columns) == ["% of voxels", "baseline", "ours", "difference"]
    assert list(table.loc["region"].index) == ["whole_tumour", "tumour_core", "enhancing_tumour"]
    assert list(table.loc["class"].index) == ["edema", "non-enhancing core", "enhancing"]
    # Case b has nothing to find and nothing found, which says nothing about the trainers.
    assert list(table["ours"]) == [1.0] * 6
    assert list(table["baseline"]) == [1.0, 1.0, 0.0, 1.0, 2 * 184 / (184 + 216), 0.0]
    assert list(table["difference"]) == list(table["ours"] - table["baseline"])
    share = 100 * 32 / case.labels.size / 2
    assert table.loc[("class", "enhancing"), "% of voxels"] == pytest.approx(share)


def test_rich_table_fits_a_terminal():
    console = Console(file=io.StringIO(), width=80)
    case = synthetic_case()
    predictions = {name: {"a": case.labels} for name in (BASELINE, OURS)}
    console.print(as_rich_table(dice_table({"a": case}, predictions)))
    header = ("nnUNetTrainer", "UnifiedFocal", "_5epochs", "difference", "by region", "by class")
    for word in (*phantom.REGIONS, *phantom.LABELS, *header, "1.000", "+0.000"):
        assert word in printed(console), word
    assert "…" not in printed(console)


def test_picture_is_wide_and_shows_the_colours(tmp_path):
    case = synthetic_case()
    path = tmp_path / "picture.png"
    draw_predictions({"a": case}, {name: {"a": case.labels} for name in (BASELINE, OURS)}, path)
    pixels = imread(path)
    assert pixels.shape[1] == 1600
    colourful = np.ptp(pixels[..., :3], axis=-1) > 0.1
    quarters = [
        quarter.any() for quarter in np.split(colourful[: len(pixels) // 2 + 50], 4, axis=1)
    ]
    assert quarters == [False, True, True, True]


# The real thing


@pytest.mark.slow
def test_demo_from_end_to_end(tmp_path):
    folder = tmp_path / "folder with a space"
    command = [sys.executable, "-m", "nnunet_unifiedloss", "demo", "-o", str(folder)]
    command += ["--epochs", "1", "-device", "cpu"]
    first = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "Dice, mean over the test cases" in first.stdout
    assert (folder / "demo.png").is_file()
    for trainer in ("nnUNetTrainer_1epoch", "nnUNetTrainerUnifiedFocal_1epochs"):
        for path in (folder / "predictions" / trainer).glob("*.nii.gz"):
            with gzip.open(path) as file:
                assert file.read()
    again = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert again.stdout.count("done before, skipped") == 5
