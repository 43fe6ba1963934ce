"""Time to plan 1,000 jobs and to read 1,000 results folders, as commands.

The folders are like those of a real comparison: 8 trainers × 25 data sets × 5 folds; two thirds are
done, with summaries of 250 cases of 3 regions, the rest are running, with logs of 500 epochs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

DATASETS = 25
VARIANTS = [f"nnUNetTrainerUnifiedFocal_weight0.{n}" for n in (1, 2, 3, 4, 6, 7, 8)]
TRAINERS = ["nnUNetTrainer", *VARIANTS]
CASES = 250
EPOCHS = 500
FOLDS = 5


def main() -> None:
    """Build the folders and time both commands."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="(default: 5)")
    repeat = parser.parse_args().repeat
    with tempfile.TemporaryDirectory() as name:
        environment = os.environ | _make_folders(Path(name))
        matrix = ["-d", *map(str, range(1, DATASETS + 1)), "-c", "2d", "-tr", *TRAINERS]
        command = [sys.executable, "-m", "nnunet_unifiedloss", "sweep", *matrix]
        nothing = [sys.executable, "-m", "nnunet_unifiedloss", "--version"]
        for text, program in (
            ("python and the package (--version)", nothing),
            ("1,000 new jobs planned (--dry-run)", [*command, "-p", "otherPlans", "--dry-run"]),
            ("1,000 results folders (--status)", [*command, "--status"]),
        ):
            print(f"{text}: {min(_seconds(program, environment) for _ in range(repeat)):.2f} s")


def _seconds(command: list[str], environment: dict[str, str]) -> float:
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - start
    if "--dry-run" in command:
        assert done.stdout.count("nnUNetv2_train") == DATASETS * len(TRAINERS) * FOLDS
    if "--status" in command:
        assert "666 done, 334 running" in done.stdout, done.stdout[-300:]
    return seconds


def _make_folders(folder: Path) -> dict[str, str]:
    variables = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    paths = {name: folder / name for name in variables}
    summary, log = json.dumps(_summary(), indent=4, sort_keys=True), _log()
    number = 0
    for dataset in (f"Dataset{index:03d}_Organ" for index in range(1, DATASETS + 1)):
        (paths["nnUNet_raw"] / dataset).mkdir(parents=True)
        _preprocess(paths["nnUNet_preprocessed"] / dataset)
        for trainer in TRAINERS:
            for fold in range(FOLDS):
                model = paths["nnUNet_results"] / dataset / f"{trainer}__nnUNetPlans__2d"
                _train(
                    model / f"fold_{fold}",
                    summary if number % 3 < 2 and number < 999 else None,
                    log,
                )
                number += 1
    return {name: str(path) for name, path in paths.items()}


def _preprocess(folder: Path) -> None:
    cases = [f"case_{case:03d}" for case in range(CASES)]
    for name in ("gt_segmentations", "nnUNetPlans_2d"):
        (folder / name).mkdir(parents=True)
    for case in cases:
        (folder / "gt_segmentations" / f"{case}.nii.gz").touch()
        (folder / "nnUNetPlans_2d" / f"{case}.pkl").touch()
    folds = [{"train": cases, "val": cases[fold::FOLDS]} for fold in range(FOLDS)]
    (folder / "splits_final.json").write_text(json.dumps(folds))
    (folder / "dataset.json").write_text(json.dumps({"file_ending": ".nii.gz"}))
    for plans in ("nnUNetPlans", "otherPlans"):
        configuration = {"2d": {"data_identifier": "nnUNetPlans_2d"}}
        (folder / f"{plans}.json").write_text(json.dumps({"configurations": configuration}))


def _train(folder: Path, summary: str | None, log: str) -> None:
    (folder / "validation").mkdir(parents=True)
    (folder / "debug.json").write_text(json.dumps({"num_epochs": "1000", "network": "x" * 15000}))
    (folder / "training_log_2026_1_1_00_00_00.txt").write_text(log)
    with zipfile.ZipFile(folder / "checkpoint_best.pth", "w") as archive:
        archive.writestr("data.pkl", "")
    if summary is not None:
        (folder / "validation" / "summary.json").write_text(summary)


def _summary() -> dict[str, object]:
    metrics = dict.fromkeys(("Dice", "IoU"), 0.123456789012345)
    metrics |= dict.fromkeys(("FN", "FP", "TN", "TP", "n_pred", "n_ref"), 123456)
    regions = {f"({', '.join(map(str, range(1, n + 2)))})": metrics for n in range(3)}
    case = {
        "metrics": regions,
        "prediction_file": "/data/nnUNet_results/Dataset001_Organ/m/fold_0/validation/a.nii.gz",
        "reference_file": "/data/nnUNet_preprocessed/Dataset001_Organ/gt_segmentations/case.nii.gz",
    }
    return {"foreground_mean": metrics, "mean": regions, "metric_per_case": [case] * CASES}


def _log() -> str:
    stamp = "2026-01-01 00:00:00.000000:"
    epoch = (
        f"{stamp} Epoch {{0}} \n{stamp} Current learning rate: 0.01 \n{stamp} train_loss -0.5 \n"
        f"{stamp} val_loss -0.5 \n{stamp} Pseudo dice [np.float32(0.8), np.float32(0.7)] \n"
        f"{stamp} Epoch time: 100.0 s \n"
    )
    return "".join(epoch.format(number) for number in range(EPOCHS))


if __name__ == "__main__":
    main()
