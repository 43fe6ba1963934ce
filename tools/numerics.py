"""Write docs/numerics.md: values of our losses and of other implementations on the same logits.

python tools/numerics.py    # the second table needs MONAI: pip install -e '.[benchmark]'
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.loss.robust_ce_loss import TopKLoss
from torch import Tensor

from nnunet_unifiedloss import losses

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "tests" / "reference"
INPUTS = np.load(REFERENCE / "inputs.npz")
IGNORED = 255
INTRODUCTION = """# Comparison with other implementations

<!-- Written by tools/numerics.py; run it again. -->

## Where they agree

Other implementations were run once on fixed logits and labels ([tests/reference](../tests/reference)).
`python tools/numerics.py` evaluates our losses on the same data in float64. *Theirs* and *ours* are the values of the
first case; the differences are the largest over all cases. Signs and constants are converted, because Combo subtracts
Dice and nnU-Net's Dice loss is negative. Near a perfect prediction, implementations in float32 leave only rounding
errors, so relative differences exclude these cases; the absolute differences there are below 1e-7.

"""
DIFFERENCES = """
## Where they differ

The values are of the case `bin2d` unless another one is named. None of these differences is a matter of taste: the last
column says which value is right, and why. MONAI and nnU-Net were run. For the other projects, we read the code and
computed its result with our losses.

"""
ABSENT = """
Absent classes are treated alike: on `bin2d` without foreground, MONAI's `GeneralizedDiceLoss` gives {:.4f} and ours
{:.4f}, and the difference is that of `smooth` above. Both give the class the largest finite weight; with 1/0², the loss
would ignore all other classes.
"""


def agreement() -> Iterator[list[str]]:
    """A row for each loss and parameters: their value, ours, and the largest difference."""
    rows = json.loads((REFERENCE / "values.json").read_text())
    rows = [r for r in rows if hasattr(losses, r["loss"]) and not r["source"].startswith("formula")]

    def key(row: dict[str, Any]) -> tuple[str, ...]:
        return row["loss"], json.dumps(row["kwargs"]), row["source"], row["function"]

    for (name, kwargs, source, function), group in groupby(sorted(rows, key=key), key=key):
        cases = list(group)
        values = [(row["value"], ours(name, row["case"], **row["kwargs"])) for row in cases]
        differences = [abs(theirs - own) for theirs, own in values]
        relative = [
            difference / abs(theirs)
            for difference, (theirs, _), row in zip(differences, values, cases, strict=True)
            if "nearperfect" not in row["case"]
        ]
        parameters = ", ".join(f"{n}={_short(v)}" for n, v in json.loads(kwargs).items())
        library = source.split("/")[-1].split()[0]
        yield [
            f"{name.removesuffix('Loss')}({parameters})",
            f"{library}, `{function}`",
            f"{values[0][0]:.6f}",
            f"{values[0][1]:.6f}",
            str(len(cases)),
            f"{max(relative):.0e}",
            f"{max(differences):.0e}",
        ]


def batch(case: str) -> tuple[Tensor, Tensor]:
    """Logits and labels of a case."""
    return torch.tensor(INPUTS[f"{case}/logits"]), torch.tensor(INPUTS[f"{case}/labels"])[:, None]


def ours(name: str, case: str, **parameters: Any) -> float:
    """The value of one of our losses on a case."""
    return float(getattr(losses, name)(**parameters)(*batch(case)))


def differences() -> Iterator[list[str]]:
    """A row for each known difference, its numbers computed here."""
    yield from _unified_focal_differences()
    yield from _focal_differences()
    yield from _generalized_dice_differences()
    yield from _top_k_differences()
    yield from _differences_read()


def _unified_focal_differences() -> Iterator[list[str]]:
    from monai.losses import AsymmetricUnifiedFocalLoss

    logits, labels = batch("bin2d")
    two = torch.cat([labels == 0, labels == 1], 1).double()
    parameters = {"weight": 0.3, "delta": 0.6, "gamma": 0.5}
    monai = AsymmetricUnifiedFocalLoss(**parameters)
    parts = [
        ours(name, "bin2d", delta=0.6, gamma=0.5)
        for name in ("AsymmetricFocalLoss", "AsymmetricFocalTverskyLoss")
    ]
    theirs, own = (
        float(monai(logits.softmax(1), two)),
        ours("UnifiedFocalLoss", "bin2d", weight=0.3),
    )
    assert abs(theirs - (0.3 * parts[0] / 2 + 0.7 * parts[1])) < 1e-6
    yield [
        "MONAI, `AsymmetricUnifiedFocalLoss(weight=0.3, delta=0.6)`",
        f"{theirs:.4f}",
        f"{own:.4f}",
        "MONAI's weight multiplies the focal term, as in equation 19. In the authors' code, in figure 1 and in our "
        "loss it multiplies the Tversky term. MONAI also averages the focal term over the two channels. One of them "
        "is 0 in each voxel, so the term counts half.",
    ]
    yield [
        "MONAI, the same, fed with logits",
        f"{float(monai(logits, two)):.4f}",
        f"{own:.4f}",
        "The docstring asks for logits and promises a sigmoid, but no sigmoid is applied: the loss needs "
        "probabilities. Ours takes logits.",
    ]
    many, classes = batch("mc2d")
    monai = AsymmetricUnifiedFocalLoss(to_onehot_y=True, num_classes=many.shape[1], **parameters)
    swapped = many[:, [0, 1, 3, 2]].softmax(1)
    unseen = float(monai(many.softmax(1), classes)), float(monai(swapped, classes))
    assert unseen[0] == unseen[1]
    yield [
        f"MONAI, the same, {many.shape[1]} classes (`mc2d`)",
        f"{unseen[0]:.4f}",
        f"{ours('UnifiedFocalLoss', 'mc2d', weight=0.3):.4f}",
        "MONAI's loss uses classes 0 and 1 only: exchanging the predictions of the other classes does not change "
        "its value. Ours is the mean over all classes.",
    ]


def _focal_differences() -> Iterator[list[str]]:
    from monai.losses import FocalLoss

    logits, labels = batch("bin2d")
    theirs = float(FocalLoss(to_onehot_y=True, use_softmax=True, alpha=0.25)(logits, labels))
    own = ours("FocalLoss", "bin2d", alpha=0.25)
    assert abs(theirs - own / logits.shape[1]) < 1e-6
    yield [
        "MONAI, `FocalLoss(alpha=0.25)`",
        f"{theirs:.4f}",
        f"{own:.4f}",
        "Both use α in the same way (α for foreground, 1 − α for background). MONAI also averages over the channels, "
        "all but one of which are 0 in each voxel, so its value shrinks with the number of classes. Ours is the mean "
        "over voxels, as in Lin's equation 5.",
    ]


def _generalized_dice_differences() -> Iterator[list[str]]:
    from monai.losses import GeneralizedDiceLoss

    theirs = float(GeneralizedDiceLoss(to_onehot_y=True, softmax=True)(*batch("bin2d")))
    yield [
        "MONAI, `GeneralizedDiceLoss`",
        f"{theirs:.6f}",
        f"{ours('GeneralizedDiceLoss', 'bin2d'):.6f}",
        "MONAI adds `smooth` to sums that are weighted by 1/V². For large structures these sums are smaller than "
        "`smooth`, which then decides the value. Ours divides the weights by the largest one before it adds `smooth`.",
    ]


def _top_k_differences() -> Iterator[list[str]]:
    logits, labels = batch("bin2d")
    ignored = labels.clone()
    ignored[..., ::2] = IGNORED
    counted = (ignored != IGNORED)[:, 0]
    own = float(losses.TopKLoss(k=10, ignore_label=IGNORED)(logits, ignored))
    entropy = -logits.log_softmax(1).gather(1, labels)[:, 0][counted]
    exact = entropy.sort(descending=True).values[: int(entropy.numel() * 0.1)].mean()
    assert abs(own - float(exact)) < 1e-6
    yield [
        "nnU-Net, `TopKLoss(k=10)`, half of the voxels ignored",
        f"{float(TopKLoss(k=10, ignore_index=IGNORED)(logits, ignored)):.4f}",
        f"{own:.4f}",
        "nnU-Net selects 10 % of all voxels, including ignored ones with a loss of 0, and so selects twice as many "
        "of the other voxels. Ours selects 10 % of the voxels that are not ignored.",
    ]


def _differences_read() -> Iterator[list[str]]:
    """Differences to code that is not run here; its results are computed with our losses."""
    yield [
        "unified-focal-loss, `combo_loss(beta=0.8)`",
        f"{ours('ComboLoss', 'bin2d', beta=0.2):.4f}",
        f"{ours('ComboLoss', 'bin2d', beta=0.8):.4f}",
        "Its weights are β for the background and 1 − β for the foreground, although its docstring says that β > ½ "
        "penalises false negatives more. Ours follows Taghanaki's paper and that docstring.",
    ]
    yield [
        "SegLossOdyssey, `DisPenalizedCE`",
        f"{ours('CrossEntropyLoss', 'bin2d'):.4f}",
        f"{ours('DistancePenalizedCrossEntropyLoss', 'bin2d'):.4f}",
        "It computes the product of cross entropy and distance weights, but returns the mean of the cross entropy "
        "alone. Ours returns the mean of the product.",
    ]
    yield [
        "SegLossOdyssey, `HausdorffERLoss`, norm of the gradient where a square is missed",
        "none",
        f"{_gradient_where_a_square_is_missed():.4f}",
        "It erodes in NumPy, outside of the autograd graph, so a network cannot learn from it. Ours differentiates "
        "all erosions.",
    ]


def _gradient_where_a_square_is_missed() -> float:
    logits, labels = torch.zeros(1, 2, 9, 9, dtype=torch.float64), torch.zeros(1, 1, 9, 9)
    logits[:, 0] = 3
    labels[..., 2:7, 2:7] = 1
    losses.HausdorffERLoss()(logits.requires_grad_(), labels).backward()
    return float(logits.grad.norm())


def absent_class() -> str:
    """The sentence about a class that is absent."""
    from monai.losses import GeneralizedDiceLoss

    logits, labels = batch("bin2d")
    absent = torch.zeros_like(labels)
    theirs = GeneralizedDiceLoss(to_onehot_y=True, softmax=True)(logits, absent)
    return ABSENT.format(float(theirs), float(losses.GeneralizedDiceLoss()(logits, absent)))


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def table(heading: list[str], rows: Callable[[], Iterator[list[str]]]) -> str:
    """Rows as Markdown."""
    lines = [heading, ["---"] * len(heading), *rows()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main() -> None:
    """Write the page."""
    columns = ["loss", "checked against", "theirs", "ours", "cases", "largest relative difference"]
    page = INTRODUCTION + table([*columns, "largest absolute difference"], agreement)
    page += DIFFERENCES + table(["code", "theirs", "ours", "which is right"], differences)
    page += absent_class()
    (ROOT / "docs" / "numerics.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
