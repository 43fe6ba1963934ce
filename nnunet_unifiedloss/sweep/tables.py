"""The status of a sweep as tables for people and as JSON for programs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from nnunet_unifiedloss._support.terminal import fits
from nnunet_unifiedloss.results.trainings import DEFAULT_PLANS
from nnunet_unifiedloss.sweep.jobs import Job, TrainingJob
from nnunet_unifiedloss.sweep.status import State, Status

# sorted as in the live table
STATES: dict[State, str] = {
    "running": "bold cyan",
    "failed": "bold red",
    "blocked": "red",
    "interrupted": "yellow",
    "queued": "cyan",
    "not started": "dim",
    "done": "green",
    "unplanned": "dim",
}
SHOWS_PROGRESS = ("running", "interrupted")
ROWS_SHOWN = 25


def matrix_table(statuses: Sequence[Status], console: Console) -> Table:
    """Return a table with a row for each model; a narrow one has all folds in one column."""
    rows: dict[tuple[str, str, str], dict[str, Status]] = {}
    for status in statuses:
        if isinstance(status.job, TrainingJob):
            training = status.job.training
            configuration = _configuration(training.configuration, training.plans)
            row = rows.setdefault((training.dataset, configuration, training.trainer), {})
            row[training.fold] = status
    table = _wide_matrix(rows)
    return table if fits(console, table) else _narrow_matrix(rows)


def _wide_matrix(rows: Mapping[tuple[str, str, str], Mapping[str, Status]]) -> Table:
    folds = list(dict.fromkeys(fold for of_fold in rows.values() for fold in of_fold))
    table = Table("data set", "configuration", "trainer", *(f"fold {fold}" for fold in folds))
    for names, of_fold in rows.items():
        cells = [_cell(of_fold[fold]) if fold in of_fold else Text("") for fold in folds]
        table.add_row(*names, *cells)
    return table


def _narrow_matrix(rows: Mapping[tuple[str, str, str], Mapping[str, Status]]) -> Table:
    table = Table(Column("training", overflow="fold"), "folds", show_lines=True)
    for names, of_fold in rows.items():
        cells = [Text(f"{fold}: ").append_text(_cell(status)) for fold, status in of_fold.items()]
        table.add_row("\n".join(names), Text("\n").join(cells))
    return table


def live_table(statuses: Sequence[Status], console: Console) -> Table:
    """Return a table of the first jobs, sorted by state, below the number in each state."""
    order = list(STATES)
    rows = sorted(statuses, key=lambda status: order.index(status.state))
    table = _wide_live(rows[:ROWS_SHOWN])
    table = table if fits(console, table) else _narrow_live(rows[:ROWS_SHOWN])
    table.title = counts(statuses)
    if len(rows) > ROWS_SHOWN:
        table.add_row(f"… and {len(rows) - ROWS_SHOWN} more")
    return table


def _wide_live(rows: Iterable[Status]) -> Table:
    table = Table("job", "state", "epoch", "pseudo Dice", "time left", "where")
    for status in rows:
        progress = status.progress if status.state in SHOWS_PROGRESS else None
        table.add_row(
            status.job.name,
            Text(status.state, style=STATES[status.state]),
            _epoch(status),
            _number(progress.pseudo_dice if progress else status.dice),
            clock_time(progress.seconds_left) if progress else "",
            status.where or "",
        )
    return table


def _narrow_live(rows: Iterable[Status]) -> Table:
    table = Table(Column("job", overflow="fold"), "state")
    for status in rows:
        table.add_row(status.job.name, _cell(status))
    return table


def counts(statuses: Iterable[Status]) -> str:
    """Return the number of jobs in each state as text."""
    number = Counter(status.state for status in statuses)
    states: list[State] = ["done", *(state for state in STATES if state != "done")]
    found = [f"{number[state]} {state}" for state in states if number[state]]
    return ", ".join(found) or "no trainings"


def remarks(statuses: Iterable[Status]) -> list[str]:
    """Return lines that the matrix does not show: preparations, errors, omissions."""
    lines = []
    for status in statuses:
        if not isinstance(status.job, TrainingJob) and status.state != "failed":
            lines.append(f"{status.state}: {status.job.name}")
        if status.state in ("failed", "blocked"):
            lines.append(f"{status.state}: {status.job.name}: {status.error}")
        if status.state == "failed" and status.log:
            lines.append(f"  log: {status.log}")
        if isinstance(status.job, TrainingJob) and status.state == "unplanned":
            training = status.job.training
            place = f"{training.dataset} {_configuration(training.configuration, training.plans)}"
            lines.append(f"left out: {place}: nnU-Net has not planned this configuration")
    return list(dict.fromkeys(lines))


def as_json(statuses: Iterable[Status]) -> list[dict[str, Any]]:
    """Return the full status of each job for JSON."""
    return [_as_json(status) for status in statuses]


def _as_json(status: Status) -> dict[str, Any]:
    progress = status.progress
    return {
        "job": status.job.name,
        **_names(status.job),
        "state": status.state,
        "epoch": progress.epoch if progress else None,
        "epochs": progress.epochs if progress else None,
        "pseudo_dice": progress.pseudo_dice if progress else None,
        "seconds_left": progress.seconds_left if progress else None,
        "dice": None if status.dice is None or math.isnan(status.dice) else status.dice,
        "where": status.where,
        "since": status.since,
        "error": status.error,
        "log": str(status.log) if status.log else None,
    }


def _names(job: Job) -> dict[str, str]:
    if not isinstance(job, TrainingJob):
        return {}
    training = job.training
    return {
        "dataset": training.dataset,
        "configuration": training.configuration,
        "plans": training.plans,
        "trainer": training.trainer,
        "fold": training.fold,
    }


def _configuration(configuration: str, plans: str) -> str:
    return configuration if plans == DEFAULT_PLANS else f"{configuration} ({plans})"


def _cell(status: Status) -> Text:
    details = []
    if status.dice is not None:
        details.append(_number(status.dice))
    if status.state in SHOWS_PROGRESS and status.progress:
        dice, left = status.progress.pseudo_dice, status.progress.seconds_left
        details += [_epoch(status), f"pseudo Dice {_number(dice)}" if dice is not None else ""]
        if status.state == "running" and left:
            details.append(f"{clock_time(left)} left")
    if status.state == "queued":
        details.append(status.where or "")
    shown = ", ".join(filter(None, details))
    return Text(f"{status.state} {shown}".strip(), style=STATES[status.state])


def _epoch(status: Status) -> str:
    progress = status.progress
    if progress is None or progress.epoch is None or status.state not in SHOWS_PROGRESS:
        return ""
    if progress.validating and status.state == "running":
        return "validating"
    return f"{progress.epoch}/{progress.epochs or '?'}"


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.3f}"


def clock_time(seconds: float | None) -> str:
    """Return a duration as minutes, or as hours and minutes.

    Example:
        >>> clock_time(3725), clock_time(125), clock_time(None)
        ('1:02 h', '2 min', '')
    """
    if seconds is None:
        return ""
    minutes = int(seconds) // 60
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d} h"
