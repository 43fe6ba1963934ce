"""Advice on the trainers to try first on a data set, from its labels alone."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from nnunet_unifiedloss.advise.findings import StructureFindings, describe
from nnunet_unifiedloss.advise.measurement import Progress, is_planar, measure_labels
from nnunet_unifiedloss.advise.rules import COST, Rule, matching
from nnunet_unifiedloss.advise.source import (
    Grid,
    Source,
    find_plans,
    find_source,
    select_grid,
)
from nnunet_unifiedloss.results.trainings import DEFAULT_FOLDS, DEFAULT_PLANS

__all__ = ["Advice", "Reason", "Recommendation", "advise", "as_json"]


@dataclass(frozen=True)
class Reason:
    """One reason for or against a trainer.

    Attributes:
        text: One sentence.
        evidence: Page of ``docs`` or paper.
        because: By structure that fulfils the rule: the facts that do so.
    """

    text: str
    evidence: str
    because: dict[str, str]


@dataclass(frozen=True)
class Recommendation:
    """One trainer, with the reasons for it or against it.

    Attributes:
        trainer: Its name.
        reasons: At least one.
        time: Time of the loss relative to nnU-Net's default; None if it is not recommended.
        memory: Memory of the loss relative to nnU-Net's default.
    """

    trainer: str
    reasons: tuple[Reason, ...]
    time: float | None = None
    memory: float | None = None


@dataclass(frozen=True)
class Advice:
    """Findings about a data set, and trainers to try.

    Attributes:
        dataset: Name of the data set.
        configuration: The configuration.
        plans: Identifier of the plans; None if the data set is not planned.
        labels: Folder of the label files.
        cases: Number of cases.
        unit: Unit of the volumes: mm³, mm², or pixels for images without physical spacing.
        structures: Findings about each label or region.
        first: Trainers to try first, the baseline before the others.
        avoid: Trainers not to try first.
        trainings: Number of trainings of the sweep.
        sweep: Command that trains them.
        compare: Command that compares them.
    """

    dataset: str
    configuration: str
    plans: str | None
    labels: str
    cases: int
    unit: str
    structures: tuple[StructureFindings, ...]
    first: tuple[Recommendation, ...]
    avoid: tuple[Recommendation, ...]
    trainings: int
    sweep: str
    compare: str


def advise(
    dataset: str | int,
    configuration: str | None = None,
    *,
    plans: str | None = None,
    processes: int = 1,
    progress: Progress | None = None,
) -> Advice:
    """Measure the labels of a data set and recommend trainers.

    Args:
        dataset: Number or name of the data set.
        configuration: ``2d``, ``3d_fullres``, …; by default ``3d_fullres`` if nnU-Net plans it.
        plans: Identifier of the plans; by default ``nnUNetPlans`` if they exist.
        processes: Number of processes.
        progress: Called with how many cases are measured and how many there are.

    Raises:
        ValueError: The data set, its labels, the configuration or the plans are missing or wrong.
    """
    source = find_source(dataset)
    planar = is_planar(source)
    grid = select_grid(find_plans(source.dataset, plans), configuration, planar)
    cases = measure_labels(source, grid, processes=processes, progress=progress)
    structures = describe(cases, grid, 2 if planar else 3)
    if not any(structure.components for structure in structures):
        names = ", ".join(source.labels.structures)
        raise ValueError(
            f"{source.files[0].parent}: none of the {len(cases)} cases has any of the labels "
            f"{names}; remedy: check the values in the files and in {source.description}"
        )
    return _advice(source, grid, planar, structures)


def as_json(advice: Advice) -> str:
    """Return everything as JSON."""
    return json.dumps(dataclasses.asdict(advice), indent=2, ensure_ascii=False)


def _advice(
    source: Source, grid: Grid, planar: bool, structures: Sequence[StructureFindings]
) -> Advice:
    first = _recommendations(structures, "try")
    trainers = [item.trainer for item in first]
    command = ["-d", str(int(source.dataset[len("Dataset") :][:3]))]
    command += ["-c", grid.configuration]
    if grid.plans not in (None, DEFAULT_PLANS):
        command += ["-p", str(grid.plans)]
    command += ["-tr", *trainers]
    return Advice(
        dataset=source.dataset,
        configuration=grid.configuration,
        plans=grid.plans,
        labels=str(source.files[0].parent),
        cases=len(source.files),
        unit=_unit(source, planar),
        structures=tuple(structures),
        first=first,
        avoid=_recommendations(structures, "avoid"),
        trainings=len(trainers) * len(DEFAULT_FOLDS),
        sweep=shlex.join(["nnunet-unifiedloss", "sweep", *command]),
        compare=shlex.join(["nnunet-unifiedloss", "compare", *command, "-o", "report/"]),
    )


def _unit(source: Source, planar: bool) -> str:
    if source.labels.reader == "NaturalImage2DIO":  # it sets a spacing of 1
        return "pixels"
    return "mm²" if planar else "mm³"


def _recommendations(
    structures: Sequence[StructureFindings], verdict: str
) -> tuple[Recommendation, ...]:
    """Collect the reasons of each trainer; a trainer to try is not one to avoid."""
    reasons: dict[str, list[Reason]] = {}
    recommended: set[str] = set()
    for rule, where in matching(structures):
        if rule.verdict == "try":
            recommended |= set(rule.trainers)
        if rule.verdict == verdict:
            for trainer in rule.trainers:
                reasons.setdefault(trainer, []).append(_reason(rule, where))
    if verdict == "avoid":
        return tuple(
            Recommendation(trainer, tuple(of_trainer))
            for trainer, of_trainer in reasons.items()
            if trainer not in recommended
        )
    return tuple(
        Recommendation(trainer, tuple(of_trainer), *COST[trainer.partition("_")[0]])
        for trainer, of_trainer in reasons.items()
    )


def _reason(rule: Rule, where: Sequence[StructureFindings]) -> Reason:
    because = {
        structure.name: ", ".join(condition.value(structure) for condition in rule.conditions)
        for structure in where
        if rule.conditions
    }
    return Reason(rule.reason, rule.evidence, because)
