"""The steps of nnU-Net's integration suite, as its commands and scripts; each only if it is due.

Where nnU-Net's last script wants CUDA and knows no cascade, its commands do the same.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_unifiedloss._support.files import write_atomically
from nnunet_unifiedloss._support.processes import console_script
from nnunet_unifiedloss.results.trainings import Training, read_json
from tests.helpers.nnunet_workspace import Workspace

SOURCE = "Dataset004_Hippocampus"
# as the Medical Segmentation Decathlon spells them, and nnU-Net's script for 998
LABELS = {"background": 0, "Anterior": 1, "Posterior": 2}
DATASETS = {
    996: "Dataset996_IntegrationTest_Hippocampus_regions_ignore",
    997: "Dataset997_IntegrationTest_Hippocampus_regions",
    998: "Dataset998_IntegrationTest_Hippocampus_ignore",
    999: "Dataset999_IntegrationTest_Hippocampus",
}
# in the order of nnU-Net's script: of equals, find_best_configuration takes the first
CONFIGURATIONS = ("2d", "3d_lowres", "3d_cascade_fullres", "3d_fullres")
OWN_PLANS, SMALL_PLANS = "nnUNetPlans", "nnUNetSmallPlans"
FIRST_FEATURES, MOST_FEATURES, BATCH, PATCH = 8, 32, 4, [24, 32, 24]
OUTPUT_FOLDER = "OUTPUT_FOLDER"  # stands for a folder in a command


class StepFailedError(RuntimeError):
    """A command of the suite failed; the message names it and its log."""


@dataclass(frozen=True)
class Suite:
    """The suite in one folder.

    Attributes:
        work: Where everything is written.
        source: The folder with ``Dataset004_Hippocampus``.
        trainer: Name of the trainer.
        plans: ``nnUNetPlans``, or ``nnUNetSmallPlans`` for a network with few features.
        folds: The folds to train.
        cases: Number of labelled cases, those held out included; None for all.
        test_cases: Number of cases that are held out.
        device: ``cpu`` or ``cuda``.
        jobs: Number of trainings that run at the same time.
    """

    work: Path
    source: Path
    trainer: str
    plans: str = SMALL_PLANS
    folds: tuple[int, ...] = (0, 1, 2, 3, 4)
    cases: int | None = None
    test_cases: int = 10
    device: str = "cpu"
    jobs: int = 1

    @property
    def workspace(self) -> Workspace:
        """nnU-Net's folders and environment; of trainings side by side, each has fewer workers."""
        workers = str(max(1, 2 // self.jobs))
        return Workspace(self.work, nnUNet_n_proc_DA=workers, nnUNet_def_n_proc=workers)

    def trainings(self, dataset: int) -> list[Training]:
        """The trainings of a data set."""
        name = DATASETS[dataset]
        return [
            Training(name, configuration, self.plans, self.trainer, str(fold))
            for configuration in CONFIGURATIONS
            for fold in self.folds
        ]

    def predictions(self, dataset: int) -> Path:
        """The folder of the predictions of the held-out cases."""
        return self.work / "predictions" / DATASETS[dataset]

    def prepare(self, dataset: int) -> None:
        """Build and plan a data set by nnU-Net's own scripts."""
        self._build(DATASETS[dataset])
        self._plan(dataset)

    def _build(self, name: str) -> None:
        """In a folder for drafts: a copy that was cut off must not look like a data set."""
        target = self.workspace.raw / name
        if target.is_dir():
            return
        drafts = self.work / "drafts"
        write_source(self.source / SOURCE, drafts / SOURCE, self.cases, self.test_cases)
        script = f"nnunetv2.dataset_conversion.datasets_for_integration_tests.{name}"
        self.run("build", name, [sys.executable, "-m", script], nnUNet_raw=str(drafts))
        (drafts / name).rename(target)

    def _plan(self, dataset: int) -> None:
        name = DATASETS[dataset]
        folder = self.workspace.preprocessed / name
        done = folder / "planned"
        if done.exists():
            return
        plan = ["nnUNetv2_plan_and_preprocess", "-d", str(dataset), "--no_pp", "-npfp", "2"]
        self.run("plan", name, plan)
        script = "nnunetv2.tests.integration_tests.add_lowres_and_cascade"
        self.run("add_cascade", name, [sys.executable, "-m", script, "-d", str(dataset)])
        plans = read_json(folder / f"{OWN_PLANS}.json")
        write_atomically(folder / f"{SMALL_PLANS}.json", json.dumps(small(plans), indent=4))
        done.touch()

    def train(self, datasets: Sequence[int]) -> None:
        """Preprocess and train what is missing; what fails is seen by what it did not leave."""
        command = [sys.executable, "-m", "nnunet_unifiedloss", "sweep", "--npz"]
        command += ["-d", *map(str, datasets), "-c", *CONFIGURATIONS, "-tr", self.trainer]
        command += ["-p", self.plans, "-f", *map(str, self.folds)]
        command += ["-device", self.device, "--jobs", str(self.jobs)]
        print(shlex.join(command), flush=True)
        subprocess.run(command, env=self.workspace.environment, check=False)

    def find_best(self, dataset: int) -> None:
        """Choose the best model or ensemble, and its postprocessing."""
        name = DATASETS[dataset]
        if self.has_found_best(dataset):
            return
        shutil.rmtree(self.predictions(dataset), ignore_errors=True)  # of another choice
        command = ["nnUNetv2_find_best_configuration", name, "-c", *CONFIGURATIONS]
        command += ["-tr", self.trainer, "-p", self.plans, "-f", *map(str, self.folds), "-np", "2"]
        self.run("find_best_configuration", name, command)

    def information(self, dataset: int) -> Path:
        """nnU-Net's file about the best configuration."""
        return self.workspace.results / DATASETS[dataset] / "inference_information.json"

    def has_found_best(self, dataset: int) -> bool:
        """Return True if the best configuration was chosen after the last training."""
        information = self.information(dataset)
        try:
            read_json(information)
            chosen = information.with_name("inference_instructions.txt").stat().st_mtime
        except (OSError, ValueError):  # absent or cut off
            return False
        results = self.workspace.results
        summaries = [
            training.folder(results) / "validation" / "summary.json"
            for training in self.trainings(dataset)
        ]
        return all(path.exists() and path.stat().st_mtime < chosen for path in summaries)

    def predict(self, dataset: int) -> None:
        """Predict the held-out cases with the best model or ensemble, postprocess and evaluate."""
        name, folder = DATASETS[dataset], self.predictions(dataset)
        best = read_json(self.information(dataset))["best_model_or_ensemble"]
        models = [model["configuration"] for model in best["selected_model_or_models"]]
        members = [
            self._predict_with(name, folder, model, probabilities=len(models) > 1)
            for model in models
        ]
        last = members[0]
        if len(members) > 1:
            last = folder / "ensemble"
            ensemble = ["nnUNetv2_ensemble", "-i", *map(str, members), "-o", OUTPUT_FOLDER]
            self._fill(last, name, [*ensemble, "-np", "2"])
        final = folder / "postprocessed"
        command = ["nnUNetv2_apply_postprocessing", "-i", str(last), "-o", OUTPUT_FOLDER]
        command += ["-pp_pkl_file", best["postprocessing_file"]]
        self._fill(final, name, [*command, "-plans_json", best["some_plans_file"], "-np", "2"])
        command = ["nnUNetv2_evaluate_folder", str(self.workspace.raw / name / "labelsTs")]
        command += [str(final), "-djfile", str(self.workspace.preprocessed / name / "dataset.json")]
        command += ["-pfile", best["some_plans_file"], "-o", str(folder / "summary.json")]
        self.run("evaluate", name, [*command, "-np", "2"])

    def _predict_with(
        self, name: str, folder: Path, configuration: str, *, probabilities: bool
    ) -> Path:
        """A cascade takes the predictions of the stage before, which may be a member, too."""
        target = folder / configuration
        command = ["nnUNetv2_predict", "-i", str(self.workspace.raw / name / "imagesTs")]
        command += ["-o", OUTPUT_FOLDER, "-d", name, "-c", configuration, "-tr", self.trainer]
        # nnU-Net's script takes folds 0 and 3 of the five, to be faster
        command += ["-p", self.plans, "-f", *map(str, self.folds[::3]), "-device", self.device]
        command += ["-npp", "1", "-nps", "1", "--disable_progress_bar"]
        if configuration == "3d_cascade_fullres":
            before = self._predict_with(name, folder, "3d_lowres", probabilities=probabilities)
            command += ["-prev_stage_predictions", str(before)]
        self._fill(target, name, command + ["--save_probabilities"] * probabilities)
        return target

    def _fill(self, target: Path, name: str, command: Sequence[str]) -> None:
        """Run a command that fills a folder, which gets its name when it is complete."""
        if target.is_dir():
            return
        draft = target.with_name(f"{target.name}.draft")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        words = [str(draft) if word == OUTPUT_FOLDER else word for word in command]
        self.run(target.name, name, words)
        draft.rename(target)

    def run(self, step: str, name: str, command: Sequence[str], **environment: str) -> None:
        """Run a command with its output in a log of its own.

        Raises:
            StepFailedError: It did not succeed.
        """
        print(f"{time.strftime('%H:%M:%S')} {name}: {shlex.join(command)}", flush=True)
        log = self.work / "logs" / f"{name}_{step}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        program = command[0] if os.sep in command[0] else console_script(command[0])
        with log.open("w") as output:
            done = subprocess.run(
                [program, *command[1:]],
                env=self.workspace.environment | environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            )
        if done.returncode:
            raise StepFailedError(f"{step} failed with exit status {done.returncode}: see {log}")


def write_source(source: Path, target: Path, cases: int | None, test_cases: int) -> None:
    """Make ``Dataset004`` of links, with the last of the labelled cases held out as test cases."""
    if target.is_dir():
        return
    labels = sorted((source / "labelsTr").glob("*.nii.gz"))[:cases]
    if len(labels) < test_cases + 5:
        raise ValueError(
            f"{source}: {len(labels)} labelled cases are too few for five folds and {test_cases} "
            "test cases; remedy: raise --cases or lower --test-cases"
        )
    draft = target.with_name("draft")
    shutil.rmtree(draft, ignore_errors=True)
    for number, label in enumerate(labels):
        part = "Tr" if number < len(labels) - test_cases else "Ts"
        image = label.name.replace(".nii.gz", "_0000.nii.gz")
        for kind, name in (("images", image), ("labels", label.name)):
            (draft / f"{kind}{part}").mkdir(parents=True, exist_ok=True)
            (draft / f"{kind}{part}" / name).symlink_to(source / f"{kind}Tr" / name)
    dataset = read_json(source / "dataset.json") | {"numTraining": len(labels) - test_cases}
    (draft / "dataset.json").write_text(json.dumps(dataset | {"labels": LABELS}))
    draft.rename(target)


def small(plans: dict[str, Any]) -> dict[str, Any]:
    """The plans for a network with few features and small patches, with a name of their own."""
    plans = json.loads(json.dumps(plans)) | {"plans_name": SMALL_PLANS}
    for configuration in plans["configurations"].values():
        if "architecture" in configuration:
            arguments = configuration["architecture"]["arch_kwargs"]
            arguments["features_per_stage"] = [
                min(FIRST_FEATURES * 2**stage, MOST_FEATURES)
                for stage in range(arguments["n_stages"])
            ]
        if "batch_size" in configuration:
            configuration["batch_size"] = min(configuration["batch_size"], BATCH)
    plans["configurations"]["3d_fullres"]["patch_size"] = PATCH
    return plans
