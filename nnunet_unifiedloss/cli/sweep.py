"""The command ``sweep``."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_unifiedloss.cli.arguments import fold, positive
from nnunet_unifiedloss.results.trainings import DEFAULT_FOLDS, DEFAULT_PLANS
from nnunet_unifiedloss.training.probe import DEVICES

if TYPE_CHECKING:
    from nnunet_unifiedloss.sweep import Job, Status


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add nnU-Net's own flags and those of the launchers."""

    def several(flag: str, text: str, metavar: str, **options: object) -> None:
        command.add_argument(flag, nargs="+", metavar=metavar, help=text, **options)  # type: ignore[arg-type]

    several("-d", "numbers or names of data sets", "DATASET", required=True)
    several("-c", "configurations: 2d, 3d_fullres, …", "CONFIGURATION")
    several("-tr", "trainers", "TRAINER")
    several("-p", "plans (default: nnUNetPlans)", "PLANS")
    several("-f", "folds, or all (default: 0 1 2 3 4)", "FOLD", type=fold)
    command.add_argument("-device", choices=DEVICES, help="(default: that of nnUNetv2_train, cuda)")
    command.add_argument("-num_gpus", type=positive, metavar="N", help="GPUs of one training")
    command.add_argument("--npz", action="store_true", help="keep probabilities, for ensembles")
    command.add_argument("--launcher", choices=("local", "slurm"), default="local")
    several("--gpus", "GPUs of this computer, one job on each; 0,1 2,3 for -num_gpus 2", "GPU")
    command.add_argument(
        "--jobs", type=positive, metavar="N", help="number of jobs that run at a time"
    )
    several(
        "--slurm", "options of sbatch: partition=gpu time=24:00:00 mem=32G gres=gpu:1", "KEY=VALUE"
    )
    command.add_argument("--dry-run", action="store_true", help="print the commands, run nothing")
    command.add_argument(
        "--status", action="store_true", help="print the progress of each training"
    )
    command.add_argument("--json", action="store_true", help="print the status as JSON")
    command.add_argument(
        "--compare", action="store_true", help="run compare when all jobs are done"
    )
    command.add_argument("-o", metavar="DIR", default="report", help="folder of compare's report")


def run(arguments: argparse.Namespace) -> int:
    """Run the sweep, or show its commands or its status.

    Returns:
        0 if all jobs are done, 1 if some are not.
    """
    check_arguments(arguments)
    jobs = _jobs(arguments)
    if arguments.status:
        return _show_status(arguments, jobs)
    _check_trainers(arguments.tr, jobs)
    if arguments.dry_run:
        return _show_commands(jobs)
    return _launch(arguments, jobs)


def check_arguments(arguments: argparse.Namespace) -> None:
    """Raise a ValueError for flags that do not go together."""
    local, cuda = arguments.launcher == "local", arguments.device in (None, "cuda")
    together = arguments.num_gpus or 1
    refusals = {
        "--json: is for --status; remedy: add --status": arguments.json and not arguments.status,
        "-c and -tr: only optional with --status; remedy: name configurations and trainers": not (
            arguments.status or (arguments.c and arguments.tr)
        ),
        "--slurm: is for --launcher slurm; remedy: add it": arguments.slurm and local,
        "--gpus: is for --launcher local; remedy: --slurm gres=gpu:1": arguments.gpus and not local,
        f"--gpus: makes no sense with -device {arguments.device}; remedy: leave one out": (
            arguments.gpus and not cuda
        ),
        f"-num_gpus: makes no sense with -device {arguments.device}; remedy: leave one out": (
            together > 1 and not cuda
        ),
        f"--gpus: -num_gpus is {together}; remedy: as many for each job, as 0,1 2,3": any(
            len(gpus.split(",")) != together for gpus in arguments.gpus or []
        ),
    }
    for text, refused in refusals.items():
        if refused:
            raise ValueError(text)
    for name in arguments.tr or []:
        if not name or "__" in name or "/" in name:
            raise ValueError(f"-tr {name!r}: not a trainer's name, which has no '__' and no '/'")


def _jobs(arguments: argparse.Namespace) -> list[Job]:
    """Return the jobs of the matrix; ``--status`` without one finds the trainings on disk."""
    from nnunet_unifiedloss.results.trainings import dataset_name, find_trainings, nnunet_folder
    from nnunet_unifiedloss.sweep import TrainingJob, plan_jobs

    datasets = list(dict.fromkeys(dataset_name(name) for name in arguments.d))
    c, tr, p, f = (
        list(dict.fromkeys(names or []))
        for names in (arguments.c, arguments.tr, arguments.p, arguments.f)
    )
    if c and tr:
        options = {"plans": p or [DEFAULT_PLANS], "flags": _training_flags(arguments)}
        return plan_jobs(
            datasets, c, tr, f or DEFAULT_FOLDS, **options, to_run=not arguments.status
        )
    results = nnunet_folder("nnUNet_results")
    return [
        TrainingJob(training)
        for dataset in datasets
        for training in find_trainings(results, dataset)
        if (not c or training.configuration in c)
        and (not tr or training.trainer in tr)
        and (not p or training.plans in p)
        and (not f or training.fold in f)
    ]


def _check_trainers(trainers: Sequence[str], jobs: Sequence[Job]) -> None:
    """Refuse names that nnU-Net does not find, before each fold fails by itself."""
    from nnunet_unifiedloss.training.install import check_found
    from nnunet_unifiedloss.training.probe import check_trainers

    check_found(trainers)
    if not all(job.is_done() for job in jobs):
        check_trainers(dict.fromkeys(trainers))


def _training_flags(arguments: argparse.Namespace) -> list[str]:
    """Return the flags that are passed on to nnUNetv2_train."""
    flags = ["-device", arguments.device] if arguments.device else []
    flags += ["-num_gpus", str(arguments.num_gpus)] if arguments.num_gpus else []
    return [*flags, "--npz"] if arguments.npz else flags


def _show_status(arguments: argparse.Namespace, jobs: Sequence[Job]) -> int:
    from nnunet_unifiedloss._support.terminal import make_console
    from nnunet_unifiedloss.sweep import look_at_all, read_queue
    from nnunet_unifiedloss.sweep.display import Display
    from nnunet_unifiedloss.sweep.tables import as_json

    statuses = look_at_all(jobs, read_queue())
    if arguments.json:
        print(json.dumps(as_json(statuses), indent=2))
    else:
        Display(make_console()).results(statuses)
    return 0


def _show_commands(jobs: Sequence[Job]) -> int:
    from nnunet_unifiedloss.sweep import look_at_all, read_queue
    from nnunet_unifiedloss.sweep.tables import counts

    statuses = look_at_all(jobs, read_queue())
    for status in statuses:
        if status.state not in ("done", "running", "queued", "unplanned"):
            print(shlex.join(status.job.command()))
    print(counts(statuses), file=sys.stderr)
    return 0


def _launch(arguments: argparse.Namespace, jobs: Sequence[Job]) -> int:
    from nnunet_unifiedloss._support.terminal import make_console
    from nnunet_unifiedloss.sweep.display import Display

    if arguments.compare:  # before days of training
        from nnunet_unifiedloss.compare.report import check_report_folder

        check_report_folder(Path(arguments.o))
    display = Display(make_console())
    if arguments.launcher == "slurm":
        from nnunet_unifiedloss.sweep.slurm import SlurmSweep

        statuses = SlurmSweep(jobs, arguments.slurm or [], arguments.jobs, display).run()
    else:
        from nnunet_unifiedloss.sweep.local import LocalSweep

        gpus = arguments.gpus or []
        parallel = arguments.jobs or max(1, len(gpus))
        statuses = LocalSweep(jobs, gpus, parallel, display).run()
    display.results(statuses)
    if any(status.state not in ("done", "unplanned") for status in statuses):
        print("some jobs are not done; the same command continues from here", flush=True)
        return 1
    return _compare(arguments, statuses)


def _compare(arguments: argparse.Namespace, statuses: Sequence[Status]) -> int:
    """Print the commands that compare the trainers, and run them with ``--compare``."""
    commands = _comparisons(arguments, statuses)
    for command in commands:
        print(shlex.join(["nnunet-unifiedloss", *command]), flush=True)
    if not arguments.compare:
        return 0
    program = [sys.executable, "-m", "nnunet_unifiedloss"]
    codes = [subprocess.run([*program, *command], check=False).returncode for command in commands]
    return next(filter(None, codes), 0)


def _comparisons(arguments: argparse.Namespace, statuses: Sequence[Status]) -> list[list[str]]:
    """Return one ``compare`` for each configuration, on the data sets that have it."""
    from nnunet_unifiedloss.sweep import TrainingJob

    datasets: dict[tuple[str, str], dict[str, None]] = {}
    for job in (status.job for status in statuses if status.state == "done"):
        if isinstance(job, TrainingJob) and job.training.configuration in arguments.c:
            place = job.training.plans, job.training.configuration
            datasets.setdefault(place, {})[job.training.dataset] = None
    trainers = list(dict.fromkeys(arguments.tr))
    folds = list(dict.fromkeys(arguments.f or DEFAULT_FOLDS))
    commands = []
    for (plans, configuration), names in datasets.items():
        folder = Path(arguments.o, f"{plans}__{configuration}" if len(datasets) > 1 else "")
        command = ["compare", "-d", *names, "-c", configuration, "-tr", *trainers]
        command += [] if plans == DEFAULT_PLANS else ["-p", plans]
        commands.append([*command, "-f", *folds, "-o", str(folder)])
    return commands
