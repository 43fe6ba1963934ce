"""The matrix of a sweep as jobs: data sets × plans × configurations × trainers × folds."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence

from nnunet_unifiedloss.results.plans import STANDARD_CONFIGURATIONS, planner_of
from nnunet_unifiedloss.results.trainings import (
    DEFAULT_FOLDS,
    DEFAULT_PLANS,
    Training,
    nnunet_folder,
)
from nnunet_unifiedloss.sweep.jobs import Job, Preparation, TrainingJob, plans_of


def plan_jobs(
    datasets: Sequence[str],
    configurations: Sequence[str],
    trainers: Sequence[str],
    folds: Sequence[str],
    *,
    plans: Sequence[str] = (DEFAULT_PLANS,),
    flags: Sequence[str] = (),
    to_run: bool = True,
) -> list[Job]:
    """Return the jobs of a matrix of trainings, each after those that it requires.

    Missing preparations and, for a cascade, all folds of its first stage are added.

    Args:
        datasets: Names of the data sets.
        configurations: ``2d``, ``3d_fullres``, …
        trainers: Names of the trainers.
        folds: ``0`` to ``4``, or ``all``.
        plans: Identifiers of the plans.
        flags: Further flags of ``nnUNetv2_train``.
        to_run: False if only the status is needed, perhaps on a computer without all of the data.

    Raises:
        ValueError: A configuration does not exist, or a data set cannot be planned and
            preprocessed.
    """
    _check_configurations(datasets, configurations, plans)
    jobs = [
        job
        for dataset, identifier in itertools.product(datasets, plans)
        for job in _jobs(dataset, identifier, configurations, trainers, folds, tuple(flags))
    ]
    for job in jobs if to_run else []:
        if isinstance(job, Preparation):
            _check_source(job)
    return jobs


def _jobs(
    dataset: str,
    identifier: str,
    configurations: Sequence[str],
    trainers: Sequence[str],
    folds: Sequence[str],
    flags: tuple[str, ...],
) -> Iterator[Job]:
    """Yield the jobs of one data set with one plans file."""
    plans = plans_of(dataset, identifier)
    stages = {name: stage for name in configurations if (stage := plans.previous_stage(name))}
    wanted = tuple(dict.fromkeys([*stages.values(), *configurations]))
    preparation = Preparation(dataset, identifier, wanted)
    due = () if preparation.is_done() else (preparation,)
    yield from due
    all_folds = [str(fold) for fold in range(len(plans.folds() or DEFAULT_FOLDS))]
    of_stage: dict[tuple[str, str], list[Job]] = defaultdict(list)
    for name, trainer in itertools.product(wanted, trainers):
        cascades = tuple(cascade for cascade, stage in stages.items() if stage == name)
        asked = folds if name in configurations else []
        before = of_stage[stages.get(name, ""), trainer]
        for fold in dict.fromkeys([*asked, *(all_folds if cascades else [])]):
            training = Training(dataset, name, identifier, trainer, fold)
            next_stages = cascades if fold in all_folds else ()
            job = TrainingJob(training, (*due, *before), flags, next_stages)
            yield job
            if next_stages:
                of_stage[name, trainer].append(job)


def _check_configurations(
    datasets: Sequence[str], configurations: Sequence[str], plans: Sequence[str]
) -> None:
    """Raise a ValueError for a configuration that neither nnU-Net nor a data set knows."""
    known = set(STANDARD_CONFIGURATIONS)  # small images have fewer, which is not an error
    for dataset, identifier in itertools.product(datasets, plans):
        known |= set(plans_of(dataset, identifier).configurations)
    for name in configurations:
        if name not in known:
            raise ValueError(
                f"-c {name}: none of the data sets has such a configuration, but there are "
                f"{', '.join(sorted(known))}; remedy: correct the name, or add it to the plans"
            )


def _check_source(preparation: Preparation) -> None:
    """Raise a ValueError for a data set that nnU-Net can neither plan nor preprocess."""
    if not (nnunet_folder("nnUNet_raw") / preparation.dataset).is_dir():
        raise ValueError(
            f"-d {preparation.dataset}: is not preprocessed for {preparation.plans_identifier} "
            f"{' '.join(preparation.configurations)}, and not in nnUNet_raw="
            f"{nnunet_folder('nnUNet_raw')}; remedy: put the data set there"
        )
    if not preparation.plans.exist and planner_of(preparation.plans_identifier) is None:
        raise ValueError(
            f"-p {preparation.plans_identifier}: {preparation.plans.file} is not there, and no "
            "planner of nnU-Net's writes plans of this name; remedy: nnUNetv2_plan_experiment -d "
            f"{preparation.dataset} -overwrite_plans_name {preparation.plans_identifier} …"
        )
