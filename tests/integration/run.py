"""nnU-Net's own integration suite, as its authors run it, with a trainer of this package.

Four data sets made from Hippocampus (labels, ignore label, regions, regions with ignore label) ×
four configurations × five folds with ``--npz``, the best configuration or ensemble, prediction and
postprocessing, by nnU-Net's scripts and commands; then a program looks at the outcome. The same
command goes on where it was interrupted. docs/integration.md says more.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from nnunet_unifiedloss._support.files import write_atomically
from nnunet_unifiedloss._support.processes import termination_as_exception
from nnunet_unifiedloss.cli.arguments import positive
from nnunet_unifiedloss.results.trainings import read_json, state
from nnunet_unifiedloss.training import install
from nnunet_unifiedloss.training.probe import check_trainers
from tests.integration.checks import (
    check_dice,
    check_information,
    check_predictions,
    check_training,
    configurations_of,
    constant_dice,
    predicted_labels,
)
from tests.integration.suite import (
    CONFIGURATIONS,
    DATASETS,
    OWN_PLANS,
    SMALL_PLANS,
    SOURCE,
    StepFailedError,
    Suite,
)

TRAINER = "nnUNetTrainerUnifiedFocal_delta0.9_gamma0.1_NoMirroring_5epochs_30iters"
FAILURES = (StepFailedError, ValueError, OSError)  # of a step; the other data sets go on


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is due, check everything; 0 if nothing is wrong."""
    arguments = parser().parse_args(argv)
    suite = suite_of(arguments)
    try:
        if not arguments.check_only:  # better now than after the preprocessing
            os.environ[install.VARIABLE] = str(install.trainers_folder())
            check_trainers([suite.trainer])
        check_settings(suite, begin=not arguments.check_only)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        with termination_as_exception():
            failures = {} if arguments.check_only else run(suite, arguments.datasets)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    outcomes = [
        look(suite, dataset, learns=not arguments.untrained) for dataset in arguments.datasets
    ]
    for outcome in outcomes:
        outcome["problems"] = failures.get(outcome["dataset"], []) + outcome["problems"]
    report(suite, outcomes)
    return 1 if any(outcome["problems"] for outcome in outcomes) else 0


def suite_of(arguments: argparse.Namespace) -> Suite:
    return Suite(
        work=arguments.work.resolve(),
        source=arguments.data.resolve(),
        trainer=arguments.trainer,
        plans=OWN_PLANS if arguments.full_size else SMALL_PLANS,
        folds=tuple(sorted(arguments.folds)),
        cases=arguments.cases,
        test_cases=arguments.test_cases,
        device=arguments.device,
        jobs=arguments.jobs,
    )


def parser() -> argparse.ArgumentParser:
    parsed = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parsed.add_argument
    add("--data", type=Path, required=True, help=f"folder with {SOURCE} in nnU-Net's format")
    add("--work", type=Path, required=True, help="folder for everything that is written")
    add("--trainer", default=TRAINER, help="(default: %(default)s)")
    add(
        "--full-size", action="store_true", help="nnU-Net's own plans, not those of a small network"
    )
    add("--datasets", type=int, nargs="+", choices=DATASETS, default=list(DATASETS))
    add("--folds", type=int, nargs="+", choices=range(5), default=list(range(5)))
    add("--cases", type=positive, metavar="N", help="take only the first N cases (default: all)")
    add(
        "--test-cases",
        type=positive,
        metavar="N",
        default=10,
        help="of them held out (default: 10)",
    )
    add("-device", choices=("cpu", "cuda"), default="cpu", help="(default: cpu)")
    add("--jobs", type=positive, metavar="N", default=1, help="trainings at a time (default: 1)")
    add("--untrained", action="store_true", help="trainings too short to learn: any Dice will do")
    add("--check-only", action="store_true", help="run nothing, check what is there")
    return parsed


def check_settings(suite: Suite, *, begin: bool) -> None:
    """Refuse to go on in a folder that was begun with other settings; note them in a new one."""
    settings = {
        name: getattr(suite, name) for name in ("trainer", "plans", "cases", "test_cases")
    } | {"source": str(suite.source), "folds": list(suite.folds)}
    if not (suite.source / SOURCE).is_dir():
        raise ValueError(f"--data {suite.source}: has no {SOURCE}; remedy: name its parent folder")
    path = suite.work / "settings.json"
    if not path.exists():
        if not begin:
            return
        suite.work.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(settings, indent=4))
    if (before := read_json(path)) != settings:
        raise ValueError(
            f"--work {suite.work}: was begun with {before}, not {settings}; remedy: the same "
            "options again, or another folder"
        )


def run(suite: Suite, datasets: list[int]) -> dict[str, list[str]]:
    """Run what is due; what failed, by data set. A failure ends the steps of its data set only."""
    failures: dict[str, list[str]] = {}
    ready = []
    for dataset in datasets:
        try:
            suite.prepare(dataset)
            ready.append(dataset)
        except FAILURES as error:
            failures[DATASETS[dataset]] = [str(error)]
            print(f"failed: {DATASETS[dataset]}: {error}", flush=True)
    if ready:
        suite.train(ready)
    for dataset in ready:
        results = suite.workspace.results
        folders = [training.folder(results) for training in suite.trainings(dataset)]
        if any(state(folder) != "finished" for folder in folders):
            continue  # the checks name them
        try:
            suite.find_best(dataset)
            suite.predict(dataset)
        except FAILURES as error:
            failures[DATASETS[dataset]] = [str(error)]
            print(f"failed: {DATASETS[dataset]}: {error}", flush=True)
    return failures


def look(suite: Suite, dataset: int, *, learns: bool) -> dict[str, Any]:
    """The outcome of a data set: its numbers, and what is wrong with it."""
    name = DATASETS[dataset]
    workspace = suite.workspace
    raw, preprocessed = workspace.raw / name, workspace.preprocessed / name
    outcome: dict[str, Any] = {"dataset": name, "problems": []}
    try:
        splits = read_json(preprocessed / "splits_final.json")
        content = read_json(raw / "dataset.json")
    except (OSError, ValueError) as error:
        return outcome | {"problems": [f"is not prepared: {error}"]}
    problems = outcome["problems"]
    trainings = suite.trainings(dataset)
    for training in trainings:
        wrong = check_training(training, workspace.results, splits)
        outcome["trainings"] = outcome.get("trainings", 0) + (not wrong)
        problems += wrong
    outcome["expected_trainings"] = len(trainings)
    path = suite.information(dataset)
    wrong = check_information(path, CONFIGURATIONS, suite.trainer, suite.plans, suite.folds)
    if wrong:
        return outcome | {"problems": problems + wrong}
    outcome["constant"] = constant_dice(
        (preprocessed / "gt_segmentations").glob("*.nii.gz"), content
    )
    floor = outcome["constant"] if learns else None
    outcome |= summary_of(read_json(path))
    for configuration, dice in outcome["configurations"].items():
        problems += check_dice(f"{configuration}: cross-validation", dice, floor)
    return outcome | look_at_predictions(suite, dataset, content, problems, learns=learns)


def summary_of(information: dict[str, Any]) -> dict[str, Any]:
    """A summary of ``inference_information.json``."""
    results, best = information["all_results"], information["best_model_or_ensemble"]
    short = {key: " + ".join(configurations_of(key)) for key in results}
    pairs = [key for key in results if key.startswith("ensemble___")]
    return {
        "configurations": {short[key]: results[key] for key in results if key not in pairs},
        "ensembles": {short[key]: results[key] for key in pairs},
        "best": " + ".join(m["configuration"] for m in best["selected_model_or_models"]),
        "best_dice": best["result_on_crossval_pre_pp"],
        "postprocessed_dice": best["result_on_crossval_post_pp"],
    }


def look_at_predictions(
    suite: Suite, dataset: int, content: dict[str, Any], problems: list[str], *, learns: bool
) -> dict[str, Any]:
    """The held-out cases: are they predicted, and how well."""
    raw, predictions = suite.workspace.raw / DATASETS[dataset], suite.predictions(dataset)
    problems += check_predictions(
        raw / "imagesTs", predictions / "postprocessed", predicted_labels(content)
    )
    try:
        dice = read_json(predictions / "summary.json")["foreground_mean"]["Dice"]
    except (OSError, ValueError, KeyError) as error:
        problems.append(f"held-out cases: not evaluated: {error}")
        return {}
    constant = constant_dice((raw / "labelsTs").glob("*.nii.gz"), content)
    problems += check_dice("held-out cases", dice, constant if learns else None)
    return {"test_dice": dice, "test_constant": constant}


def report(suite: Suite, outcomes: list[dict[str, Any]]) -> None:
    """Print the result and write it as JSON and Markdown."""
    head = ["data set", "trainings", *CONFIGURATIONS, "best", "its Dice", "postprocessed"]
    head += ["constant", "held-out cases", "constant", "outcome"]
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    for outcome in outcomes:
        cells = [outcome["dataset"].partition("_")[0].removeprefix("Dataset")]
        cells += [f"{outcome.get('trainings', 0)}/{outcome.get('expected_trainings', '?')}"]
        cells += [number(outcome.get("configurations", {}).get(name)) for name in CONFIGURATIONS]
        cells += [outcome.get("best", "")]
        names = ("best_dice", "postprocessed_dice", "constant", "test_dice", "test_constant")
        cells += [number(outcome.get(name)) for name in names]
        problems = outcome["problems"]
        cells += [f"{len(problems)} problems" if problems else "passed"]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [f"- {item['dataset']}: {line}" for item in outcomes for line in item["problems"]]
    text = "\n".join(lines) + "\n"
    print(f"\n{suite.trainer}, {suite.plans}\n\n{text}")
    write_atomically(suite.work / "result.md", text)
    content = {"trainer": suite.trainer, "plans": suite.plans, "datasets": outcomes}
    write_atomically(suite.work / "result.json", json.dumps(content, indent=4) + "\n")


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    sys.exit(main())
