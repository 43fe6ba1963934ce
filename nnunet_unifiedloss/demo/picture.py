"""The demo's picture: one slice with the image, the reference and each prediction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from nnunet_unifiedloss.compare.comparison import Comparison
from nnunet_unifiedloss.demo.phantom import FILE_ENDING, LABELS, REGIONS, read_array

# the palette of Okabe and Ito, which colour-blind readers can tell apart
COLOURS = {"edema": "#56B4E9", "non-enhancing core": "#D55E00", "enhancing": "#F0E442"}


def draw_predictions(
    comparison: Comparison, dataset: Path, predictions: Sequence[Path], path: Path
) -> None:
    """Draw the axial slice with the most enhancing tumour among the validation cases.

    Args:
        comparison: The Dice scores of these predictions.
        dataset: The phantom data set.
        predictions: nnU-Net's ``fold_0/validation`` of each trainer.
        path: The PNG file to write.
    """
    names = [file.name for file in predictions[0].glob(f"*{FILE_ENDING}")]
    references = {name: read_array(dataset / "labelsTr" / name) for name in sorted(names)}
    enhancing = {
        name: (labels == LABELS["enhancing"]).sum(axis=(1, 2))
        for name, labels in references.items()
    }
    case = max(enhancing, key=lambda name: int(enhancing[name].max()))
    position = int(enhancing[case].argmax())
    image = read_array(dataset / "imagesTr" / case.replace(FILE_ENDING, f"_0000{FILE_ENDING}"))
    panels = {"image": np.zeros_like(image[position]), "reference": references[case][position]}
    for folder in predictions:
        trainer = folder.parents[1].name.split("__")[0]
        title = f"{trainer}\nDice: {_scores(comparison, trainer, case)}"
        panels[title] = read_array(folder / case)[position]
    _draw(image[position], panels, path)


def _scores(comparison: Comparison, trainer: str, case: str) -> str:
    (dataset,) = comparison.datasets
    name = case.removesuffix(FILE_ENDING)
    texts = []
    for region in REGIONS:
        score = comparison.scores(dataset, "Dice", region)[trainer][name]
        texts.append(f"{region.replace('tumour', '').strip('_')} {score:.2f}")
    return ", ".join(texts)


def _draw(image: npt.NDArray[Any], panels: dict[str, npt.NDArray[Any]], path: Path) -> None:
    """Draw label maps side by side over an image, each below its title."""
    figure = Figure(figsize=(4 * len(panels), 5.7), dpi=100)
    FigureCanvasAgg(figure)
    figure.subplots_adjust(left=0.005, right=0.995, top=0.9, bottom=0.09, wspace=0.02)
    colours = ListedColormap([COLOURS[name] for name in LABELS])
    for axes, (title, labels) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        axes.set_title(title, fontsize=11.5)
        axes.set_axis_off()
        axes.imshow(image, cmap="gray", interpolation="bilinear")
        overlay = np.ma.masked_equal(labels, 0)
        axes.imshow(overlay, cmap=colours, vmin=1, vmax=len(LABELS), alpha=0.7)
    legend = [Patch(color=COLOURS[name], label=name) for name in LABELS]
    figure.legend(handles=legend, loc="lower center", ncols=len(legend), fontsize=14)
    figure.savefig(path)
