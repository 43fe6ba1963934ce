"""Makes docs/numerics.md: our values beside those of others on the same logits.

python tools/numerics.py    # needs MONAI for the second table: pip install -e '.[benchmark]'
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
INTRODUCTION = """# Numbers beside those of others

<!-- Written by tools/numerics.py; run it again. -->

## Where they agree

`python tools/numerics.py` evaluates every loss on logits and labels on which code of others was run once
([tests/reference](../tests/reference)), in float64. Value: of the first case; the difference is the largest over the cases.
Signs and constants are converted (Combo subtracts Dice, nnU-Net's Dice is negative). Where others compute in float32, near a
perfect prediction only their rounding is left; it is absolute and below 1e-7.

"""
DIFFERENCES = """
## Where they differ

On the case `bin2d` unless another is named. None of these is a matter of taste: the last column says what is right, and why.
MONAI and nnU-Net were run; what the code of the others gives was read in it and is computed with ours.

"""
ABSENT = """
One does not differ where one might expect it: for a class that is absent MONAI's `GeneralizedDiceLoss` gives {:.4f}, and ours
{:.4f}. Both give it the largest finite weight; with 1/0² the loss would be blind to all others.
"""


def agreement() -> Iterator[list[str]]:
    """A row for each loss and parameters: their value, ours, and the largest difference."""
    rows = json.loads((REFERENCE / "values.json").read_text())

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
        "MONAI's weight is on the focal term, as equation 19 prints it; the authors' code and figure "
        "1 put it on the Tversky term, as we do. MONAI also takes the mean of the focal term over the "
        "two channels, of which one is 0 in each voxel, so that the term counts half.",
    ]
    yield [
        "MONAI, the same, fed with logits",
        f"{float(monai(logits, two)):.4f}",
        f"{own:.4f}",
        "Its docstring asks for logits and promises a sigmoid that is not applied: probabilities are "
        "what it needs. Ours takes logits.",
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
        "MONAI's sees classes 0 and 1 only: exchanging the predictions of the others leaves its value "
        "as it is. Ours is the mean over all classes.",
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
        "α is used alike (α for foreground, 1 − α for background), but MONAI takes the mean over the channels "
        "too, of which all but one are 0 in each voxel: its value shrinks with every class that is added. Ours "
        "is the mean over voxels, as Lin's equation 5.",
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
        "nnU-Net takes 10 % of all voxels, ignored ones with a loss of 0 included, so it looks at "
        "twice as many of the others. Ours takes 10 % of those that count.",
    ]


def _differences_read() -> Iterator[list[str]]:
    """What code that is not run here computes, expressed with ours."""
    yield [
        "unified-focal-loss, `combo_loss(beta=0.8)`",
        f"{ours('ComboLoss', 'bin2d', beta=0.2):.4f}",
        f"{ours('ComboLoss', 'bin2d', beta=0.8):.4f}",
        "Its weights are β for the background and 1 − β for the foreground, although its docstring says that β > ½ "
        "penalises false negatives more. Ours does what Taghanaki's paper and that docstring say.",
    ]
    yield [
        "SegLossOdyssey, `DisPenalizedCE`",
        f"{ours('CrossEntropyLoss', 'bin2d'):.4f}",
        f"{ours('DistancePenalizedCrossEntropyLoss', 'bin2d'):.4f}",
        "It computes the product of cross entropy and distance weights and returns the mean of the cross entropy "
        "alone. Ours returns the mean of the product.",
    ]
    yield [
        "SegLossOdyssey, `HausdorffERLoss`, norm of the gradient where a square is missed",
        "none",
        f"{_gradient_where_a_square_is_missed():.4f}",
        "It erodes in NumPy, outside of the graph: a network cannot learn from it. Ours differentiates all erosions.",
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
