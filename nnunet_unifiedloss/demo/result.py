"""What the demo shows at its end: a table of Dice and a picture of a slice."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from rich.table import Table

from nnunet_unifiedloss.demo.phantom import LABELS, REGIONS, PhantomCase

__all__ = ["as_rich_table", "dice_score", "dice_table", "draw_predictions"]

# Okabe and Ito's palette, told apart with any kind of colour vision.
COLOURS = {"edema": "#56B4E9", "non-enhancing core": "#D55E00", "enhancing": "#F0E442"}

LabelMap = npt.NDArray[Any]
# What is scored: the regions that nnU-Net was trained on, and the labels that make them up.
STRUCTURES = {
    **{("region", name): labels for name, labels in REGIONS.items()},
    **{("class", name): (label,) for name, label in LABELS.items()},
}


def dice_score(reference: npt.NDArray[np.bool_], prediction: npt.NDArray[np.bool_]) -> float:
    """Dice of two masks; NaN where both are empty."""
    size = int(reference.sum()) + int(prediction.sum())
    return 2 * int((reference & prediction).sum()) / size if size else float("nan")


def dice_table(
    cases: Mapping[str, PhantomCase], predictions: Mapping[str, Mapping[str, LabelMap]]
) -> pd.DataFrame:
    """Mean Dice over the cases, leaving out those where neither reference nor prediction has any.

    Args:
        cases: image and reference by case.
        predictions: label map by trainer (the baseline first) and case.

    Returns:
        One row per region and class; columns: its share of the reference's voxels in percent, one
        for each trainer, and the last trainer's difference from the first.
    """
    rows = []
    for labels in STRUCTURES.values():
        masks = {name: np.isin(case.labels, labels) for name, case in cases.items()}
        row = {"% of voxels": 100 * float(np.mean([mask.mean() for mask in masks.values()]))}
        for trainer, maps in predictions.items():
            scores = [dice_score(mask, np.isin(maps[name], labels)) for name, mask in masks.items()]
            row[trainer] = float(pd.Series(scores).mean())
        rows.append(row)
    index = pd.MultiIndex.from_tuples(STRUCTURES, names=["kind", "structure"])
    table = pd.DataFrame(rows, index=index)
    first, *_, last = predictions
    table["difference"] = table[last] - table[first]
    return table


def as_rich_table(dice: pd.DataFrame) -> Table:
    """The table of `dice_table` for the terminal, narrow enough for 80 columns."""
    table = Table(title="Dice, mean over the test cases")
    table.add_column("structure", no_wrap=True)
    for name in dice.columns:
        # Where to break a name, as the terminal would break it anywhere.
        header = re.sub(r"(Trainer(?!_)| of )", r"\1\n", str(name)).replace("_", "\n_")
        table.add_column(header, justify="right")
    for kind, rows in dice.groupby(level="kind", sort=False):
        table.add_row(f"by {kind}", style="italic")
        structures = rows.index.get_level_values("structure")
        for structure, (share, *scores, difference) in zip(
            structures, rows.to_numpy(), strict=True
        ):
            cells = [f"{share:.2f}", *(f"{score:.3f}" for score in scores), f"{difference:+.3f}"]
            table.add_row(f"  {structure}", *cells)
        table.add_section()
    return table


def draw_predictions(
    cases: Mapping[str, PhantomCase],
    predictions: Mapping[str, Mapping[str, LabelMap]],
    path: Path,
) -> None:
    """Draw the axial slice with most enhancing tumour: image, reference and each prediction.

    Args:
        cases: image and reference by case.
        predictions: label map by trainer and case.
        path: PNG file to write.
    """
    enhancing = {
        name: (case.labels == LABELS["enhancing"]).sum(axis=(1, 2)) for name, case in cases.items()
    }
    chosen = max(enhancing, key=lambda name: int(enhancing[name].max()))
    case, position = cases[chosen], int(enhancing[chosen].argmax())
    panels: dict[str, LabelMap | None] = {"image": None, "reference": case.labels}
    panels |= {
        _title(trainer, case.labels, maps[chosen]): maps[chosen]
        for trainer, maps in predictions.items()
    }
    figure = Figure(figsize=(4 * len(panels), 5.7), dpi=100)
    FigureCanvasAgg(figure)
    figure.subplots_adjust(left=0.005, right=0.995, top=0.9, bottom=0.09, wspace=0.02)
    for axes, (title, labels) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        axes.set_title(title, fontsize=11.5)
        axes.set_axis_off()
        axes.imshow(case.image[position], cmap="gray", interpolation="bilinear")
        if labels is not None:
            overlay = np.ma.masked_equal(labels[position], 0)
            colours = ListedColormap([COLOURS[name] for name in LABELS])
            axes.imshow(overlay, cmap=colours, vmin=1, vmax=len(LABELS), alpha=0.7)
    legend = [Patch(color=COLOURS[name], label=name) for name in LABELS]
    figure.legend(handles=legend, loc="lower center", ncols=len(legend), fontsize=14)
    figure.savefig(path)


def _title(trainer: str, reference: LabelMap, prediction: LabelMap) -> str:
    scores = [
        dice_score(np.isin(reference, labels), np.isin(prediction, labels))
        for labels in REGIONS.values()
    ]
    names = [name.replace("tumour", "").strip("_") for name in REGIONS]
    dice = ", ".join(f"{name} {score:.2f}" for name, score in zip(names, scores, strict=True))
    return f"{trainer}\nDice: {dice}"
