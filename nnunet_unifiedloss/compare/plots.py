"""Figures of a comparison: each function draws one on given axes, or on new ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.patches import Patch
from matplotlib.ticker import LogFormatter

from nnunet_unifiedloss.compare.analysis import ALL_LABELS
from nnunet_unifiedloss.compare.comparison import Comparison
from nnunet_unifiedloss.compare.metrics import METRICS
from nnunet_unifiedloss.compare.slices import worst_case_picture
from nnunet_unifiedloss.compare.statistics import FEWEST_PAIRS, LEVEL, ranks
from nnunet_unifiedloss.compare.verdict import describe_metric, short_names

__all__ = [
    "plot_cases",
    "plot_critical_difference",
    "plot_curves",
    "plot_differences",
    "plot_sizes",
    "plot_worst_case",
]

# Okabe and Ito's palette, told apart with any kind of colour vision, black for the baseline
MANY_COLOURS = tuple(map(to_hex, colormaps["tab20"].colors))  # type: ignore[attr-defined]
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
BASELINE_COLOUR = "#000000"
MARKERS = "osD^vP*X"


def method_colours(comparison: Comparison) -> dict[str, str]:
    """The colour of each method, the same in every figure."""
    others = sorted(set(comparison.methods) - {comparison.settings.baseline})
    palette = COLOURS if len(others) <= len(COLOURS) else MANY_COLOURS
    colours = {method: palette[index % len(palette)] for index, method in enumerate(others)}
    return colours | {comparison.settings.baseline: BASELINE_COLOUR}


def plot_differences(
    comparison: Comparison, *, dataset: str | None = None, ax: Axes | None = None
) -> Axes:
    """Forest plot: paired differences to the baseline with 95 % bootstrap intervals.

    A row for each method, a mark for each structure; filled where the difference is significant
    after Holm's adjustment.

    Args:
        comparison: The comparison to draw.
        dataset: The data set; the first if None.
        ax: Axes to draw on.
    """
    ax = _axes(ax)
    settings = comparison.settings
    table = comparison.differences
    table = table[
        (table["dataset"] == _dataset(comparison, dataset)) & (table["metric"] == settings.primary)
    ]
    methods = [method for method in comparison.methods if method != settings.baseline]
    labels = comparison.labels_of(_dataset(comparison, dataset))
    for index, label in enumerate(labels):
        rows = table[table["label"] == label].set_index("method").reindex(methods)
        places = np.arange(len(methods)) + 0.6 * ((index + 0.5) / len(labels) - 0.5)
        colour = BASELINE_COLOUR if label == ALL_LABELS else COLOURS[index % len(COLOURS)]
        middle = rows["difference"].to_numpy()
        spread = np.abs(rows[["difference_low", "difference_high"]].to_numpy().T - middle)
        marker = MARKERS[index % len(MARKERS)]
        style: dict[str, Any] = {
            "fmt": marker,
            "color": colour,
            "capsize": 2,
            "markersize": 6,
            "lw": 1.5,
        }
        ax.errorbar(middle, places, xerr=spread, mfc="white", label=plain(label), **style)
        significant = (rows["p_holm"] < LEVEL).to_numpy()
        filled = middle[significant], places[significant]
        ax.plot(*filled, marker, color=colour, markersize=6, zorder=3)  # above the hollow ones
    ax.axvline(0, color="0.5", lw=1)
    _name_rows(ax, methods, _names(comparison))
    baseline = _names(comparison)[settings.baseline]
    ax.set_xlabel(f"difference to {baseline}: {describe_metric(settings.primary)}")
    ax.legend(fontsize="small", title="filled: significant", title_fontsize="small")
    return ax


def plot_cases(
    comparison: Comparison, *, dataset: str | None = None, ax: Axes | None = None
) -> Axes:
    """Every case's value of the primary metric on the main label, with quartiles and mean.

    Args:
        comparison: The comparison to draw.
        dataset: The data set; the first if None.
        ax: Axes to draw on.
    """
    ax = _axes(ax)
    metric, label = comparison.settings.primary, comparison.main_label
    scores = comparison.scores(_dataset(comparison, dataset), metric, label)
    values = [scores[method].dropna().to_numpy() for method in comparison.methods]
    colours = method_colours(comparison)
    ax.boxplot(
        values,
        orientation="horizontal",
        positions=range(len(values)),
        widths=0.55,
        showfliers=False,
        showmeans=True,
        meanprops={"marker": "|", "markeredgecolor": "#D55E00", "markersize": 14, "mew": 2},
        medianprops={"color": "black"},
    )
    # a fixed spread, so that equal reports look equal
    spread = np.random.default_rng(0).uniform(-0.2, 0.2, size=len(scores))
    for index, method in enumerate(comparison.methods):
        ax.plot(scores[method], index + spread, ".", color=colours[method], alpha=0.5)
    _name_rows(ax, comparison.methods, _names(comparison))
    ax.set_xlabel(describe_metric(metric))
    return ax


def plot_sizes(
    comparison: Comparison,
    *,
    dataset: str | None = None,
    label: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Difference to the baseline against the size of the structure: points are cases.

    Bars are the means of the quantile strata with their 95 % intervals.

    Args:
        comparison: The comparison to draw.
        dataset: The data set; the first if None.
        label: The structure; the first if None.
        ax: Axes to draw on.
    """
    ax = _axes(ax)
    dataset = _dataset(comparison, dataset)
    label = label or comparison.labels_of(dataset)[-1]
    baseline = comparison.settings.baseline
    scores = comparison.scores(dataset, comparison.settings.primary, label)
    sizes = comparison.volumes.xs((dataset, label), level=("dataset", "label"))
    names, colours = _names(comparison), method_colours(comparison)
    spread = (sizes.max() / sizes[sizes > 0].min()) ** 0.04  # keeps the bars apart
    strata = comparison.strata
    strata = strata[(strata["dataset"] == dataset) & (strata["label"] == label)]
    for method in (name for name in comparison.methods if name != baseline):
        colour = colours[method]
        difference = (scores[method] - scores[baseline]).reindex(sizes.index)
        ax.plot(sizes, difference, ".", color=colour, alpha=0.3)
        rows = strata[strata["method"] == method]
        centre = np.sqrt((rows["size_low"] * rows["size_high"]).to_numpy(dtype=float))
        middle = rows["difference"].to_numpy(dtype=float)
        limits = rows[["difference_low", "difference_high"]].to_numpy(dtype=float).T
        shift = spread ** (list(colours).index(method) / len(colours) - 0.5)
        style: dict[str, Any] = {"fmt": "o-", "color": colour, "capsize": 3, "label": names[method]}
        ax.errorbar(centre * shift, middle, yerr=np.abs(limits - middle), **style)
    ax.axhline(0, color="0.5", lw=1)
    ax.set_xscale("log")
    for formatter in (ax.xaxis.set_major_formatter, ax.xaxis.set_minor_formatter):
        formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(1.5, 0.5)))
    ax.set_xlabel(f"size of {plain(label)} in the reference, in the images' unit (mm³)")
    ax.set_ylabel(f"{comparison.settings.primary} − {names[baseline]}")
    ax.legend(fontsize="small")
    return ax


def plot_curves(
    comparison: Comparison, *, dataset: str | None = None, ax: Axes | None = None
) -> Axes:
    """nnU-Net's pseudo-Dice by epoch: the mean over the folds, and their range.

    Losses differ in scale between methods, so they are not drawn.

    Args:
        comparison: The comparison to draw.
        dataset: The data set; the first if None.
        ax: Axes to draw on.
    """
    ax = _axes(ax)
    curves = comparison.curves
    curves = curves[curves["dataset"] == _dataset(comparison, dataset)]
    names, colours = _names(comparison), method_colours(comparison)
    for method in comparison.methods:
        rows = curves[curves["method"] == method].groupby("epoch")["pseudo_dice"]
        if not len(rows):
            continue
        mean = rows.mean()
        ax.plot(mean.index, mean, color=colours[method], label=names[method])
        ax.fill_between(mean.index, rows.min(), rows.max(), color=colours[method], alpha=0.12)
    ax.set_xlabel("epoch")
    ax.set_ylabel("pseudo-Dice, mean over structures and folds")
    if ax.lines:
        ax.legend(fontsize="small")
    return ax


def plot_critical_difference(comparison: Comparison, *, ax: Axes | None = None) -> Axes:
    """Critical-difference diagram of the primary metric (Demšar 2006, JMLR 7).

    Mean ranks over the data sets, or over the cases of a single one; a bar joins methods between
    which Nemenyi's test finds no difference.

    Args:
        comparison: The comparison; at least three methods and six data sets or cases.
        ax: Axes to draw on.

    Raises:
        ValueError: There are fewer.
    """
    import scikit_posthocs as posthocs

    blocks = rank_blocks(comparison)
    if len(comparison.methods) < 3 or len(blocks) < FEWEST_PAIRS:
        raise ValueError(
            f"a critical-difference diagram needs at least 3 methods and {FEWEST_PAIRS} data sets "
            f"(or cases of one), got {len(comparison.methods)} methods and {len(blocks)}"
        )
    ax = _axes(ax)
    names, colours = _names(comparison), method_colours(comparison)
    blocks = blocks.rename(columns=names).reset_index(drop=True)
    significance = posthocs.posthoc_nemenyi_friedman(blocks.to_numpy())
    significance.index = significance.columns = blocks.columns
    posthocs.critical_difference_diagram(
        blocks.mean(),
        significance,
        ax=ax,
        color_palette={names[method]: colours[method] for method in comparison.methods},
        label_fmt_left="{label} ({rank:.2f})",
        label_fmt_right="({rank:.2f}) {label}",
    )
    return ax


def plot_worst_case(
    comparison: Comparison, *, method: str, dataset: str | None = None, ax: Axes | None = None
) -> Axes:
    """The case on which a method is worst: image, reference and prediction in one slice.

    Args:
        comparison: The comparison to draw.
        method: The method.
        dataset: The data set; the first if None.
        ax: Axes to draw on.
    """
    ax = _axes(ax)
    picture = worst_case_picture(comparison, method, _dataset(comparison, dataset))
    ax.imshow(picture.pixels, interpolation="nearest", aspect=picture.aspect)
    ax.set_axis_off()
    ax.set_title(plain(picture.title), fontsize="medium", pad=20)
    width = picture.pixels.shape[1] / len(picture.panels)
    for index, panel in enumerate(picture.panels):
        ax.text((index + 0.5) * width, -1, panel, ha="center", va="bottom", fontsize="small")
    key = [Patch(color=colour, label=plain(name)) for name, colour in picture.colours.items()]
    ax.legend(handles=key, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return ax


def rank_blocks(comparison: Comparison) -> pd.DataFrame:
    """Ranks to draw: of each data set by mean rank, or of each case of a single data set."""
    higher = METRICS[comparison.settings.primary].higher_is_better
    if len(comparison.datasets) > 1:
        table, higher = comparison.dataset_ranks, False
    else:
        dataset, metric = comparison.datasets[0], comparison.settings.primary
        table = comparison.scores(dataset, metric, comparison.main_label).dropna()
    table[:] = ranks(table.to_numpy(), higher)
    return table


def plain(text: str) -> str:
    """Escape a name for matplotlib: $ starts mathematics, and _ hides it from legends."""
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def _names(comparison: Comparison) -> dict[str, str]:
    return {method: plain(name) for method, name in short_names(comparison.methods).items()}


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    from matplotlib import pyplot as plt

    return plt.subplots(layout="constrained")[1]


def _dataset(comparison: Comparison, dataset: str | None) -> str:
    return comparison.datasets[0] if dataset is None else dataset


def _name_rows(ax: Axes, methods: list[str], names: Mapping[str, str]) -> None:
    """Label the rows, with the first method at the top."""
    ax.set_yticks(range(len(methods)), [names[method] for method in methods])
    ax.set_ylim(len(methods) - 0.5, -0.5)
