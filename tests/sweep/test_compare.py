"""The comparisons that follow a sweep whose jobs are all done, on made-up results."""

from __future__ import annotations

import csv
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from nnunet_unifiedloss.cli import main
from nnunet_unifiedloss.cli import sweep as cli_sweep
from nnunet_unifiedloss.cli.program import make_parser
from nnunet_unifiedloss.training import install, probe
from tests.helpers.results_folder import PLAIN, ResultsFolder, lesions, shifted

TRAINERS = {"nnUNetTrainerTversky": 1, "nnUNetTrainer": 2}
CASES = 4


@pytest.fixture
def folders(tmp_path, monkeypatch) -> Path:
    """Make data set 4 with two configurations and data set 5 with one, all trained."""
    for number, configurations in ((4, ["2d", "3d_fullres"]), (5, ["2d"])):
        made = ResultsFolder(tmp_path, PLAIN, f"Dataset{number:03d}_Made")
        references = {name: case > 0 for name, case in lesions(CASES).items()}
        made.add_cases({name: case.astype("uint8") for name, case in references.items()})
        _preprocess(made.path("nnUNet_preprocessed"), sorted(references), configurations)
        for configuration in configurations:
            for trainer, steps in TRAINERS.items():
                for fold in range(2):
                    cases = sorted(references)[fold::2]
                    made.add_training(trainer, cases, shifted(steps), fold, configuration)
    for name, value in made.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(install.VARIABLE, str(install.trainers_folder()))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _preprocess(folder: Path, cases: list[str], configurations: list[str]) -> None:
    for name in configurations:
        (folder / f"nnUNetPlans_{name}").mkdir()
        for case in cases:
            (folder / f"nnUNetPlans_{name}" / f"{case}.pkl").touch()
    plans = {"configurations": {name: {} for name in configurations}}
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps({"file_ending": ".nii.gz"}))


def sweep(configurations: str, *flags: str) -> int:
    # names that are given twice are done once
    matrix = f"-d 4 5 Dataset004_Made -c {configurations} -tr {' '.join(TRAINERS)} -f 0 1 01"
    return main(["sweep", *matrix.split(), *flags])


DATASETS = {
    "nnUNetPlans__2d": ["Dataset004_Made", "Dataset005_Made"],
    "nnUNetPlans__3d_fullres": ["Dataset004_Made"],  # 5 has no such configuration
}


def test_one_comparison_of_the_trainers_for_each_configuration(folders, capfd, monkeypatch):
    ran = []

    def compare(arguments, check):
        ran.append(arguments)
        return subprocess.CompletedProcess(arguments, 0)

    monkeypatch.setattr(probe, "check_trainers", lambda _: None)
    monkeypatch.setattr(cli_sweep.subprocess, "run", compare)
    assert sweep("2d 3d_fullres 2d", "--compare", "-o", "my report") == 0
    shown = capfd.readouterr().out
    for name, arguments in zip(DATASETS, ran, strict=True):
        command = shlex.split(
            f"compare -d {' '.join(DATASETS[name])} -c {name.partition('__')[2]} "
            f"-tr {' '.join(TRAINERS)} -f 0 1 -o 'my report/{name}'"
        )
        assert shlex.join(["nnunet-unifiedloss", *command]) in shown.splitlines()
        assert arguments == [sys.executable, "-m", "nnunet_unifiedloss", *command]
        make_parser().parse_args(command)


@pytest.mark.slow
def test_reports_of_the_comparisons(folders):
    assert sweep("2d 3d_fullres 2d", "--compare", "-o", "my report") == 0
    for name, datasets in DATASETS.items():
        folder = Path("my report") / name
        assert (folder / "report.html").is_file()
        with (folder / "cases.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert {row["dataset"] for row in rows} == set(datasets)
        assert {row["trainer"] for row in rows} == set(TRAINERS)
        assert {row["configuration"] for row in rows} == {name.partition("__")[2]}


def test_a_report_that_could_not_be_written_is_refused_before_anything_is_trained(folders, capfd):
    Path("file").touch()
    assert sweep("2d", "--compare", "-o", "file/report") == 1
    shown = capfd.readouterr()
    assert "file is a file, not a folder for a report; remedy: another -o" in shown.err
    assert "done" not in shown.out
