"""Makes docs/numerics.md: our values beside those of others on the same logits.

python docs/numerics.py    # needs MONAI for the second table: pip install -e '.[benchmark]'
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.losses import AsymmetricUnifiedFocalLoss, FocalLoss, GeneralizedDiceLoss
from nnunetv2.training.loss.robust_ce_loss import TopKLoss
from torch import Tensor

from nnunet_unifiedloss import losses

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "tests" / "reference"
INPUTS = np.load(REFERENCE / "inputs.npz")
IGNORED = 255
INTRODUCTION = """# Numbers beside those of others

<!-- Written by docs/numerics.py; run it again. -->

## Where they agree

`python docs/numerics.py` evaluates every loss on logits and labels on which code of others was run once
([tests/reference](../tests/reference)), in float64. Value: of the first case; the difference is the largest over the cases.
Signs and constants are converted (Combo subtracts Dice, nnU-Net's Dice is negative). Where others compute in float32, near a
perfect prediction only their rounding is left; it is absolute and below 1e-7.

"""
DIFFERENCES = """
## Where they differ

On the case `bin2d` unless another is named. None of these is a matter of taste: the last column says what is right, and why.

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
    logits, labels = batch("bin2d")
    two = torch.cat([labels == 0, labels == 1], 1).double()
    monai = AsymmetricUnifiedFocalLoss(weight=0.3, gamma=0.5, delta=0.6)
    parts = [
        ours(name, "bin2d", delta=0.6, gamma=0.5)
        for name in ("AsymmetricFocalLoss", "AsymmetricFocalTverskyLoss")
    ]
    theirs = float(monai(logits.softmax(1), two))
    assert abs(theirs - (0.3 * parts[0] / 2 + 0.7 * parts[1])) < 1e-6
    yield [
        "MONAI, `AsymmetricUnifiedFocalLoss(weight=0.3, delta=0.6)`",
        f"{theirs:.4f}",
        f"{ours('UnifiedFocalLoss', 'bin2d', weight=0.3):.4f}",
        "MONAI's weight is on the focal term, as equation 19 prints it; the authors' code and figure "
        "1 put it on the Tversky term, as we do. MONAI also takes the mean of the focal term over the "
        "two channels, of which one is 0 in each voxel, so that the term counts half.",
    ]
    yield [
        "MONAI, the same, fed with logits",
        f"{float(monai(logits, two)):.4f}",
        f"{ours('UnifiedFocalLoss', 'bin2d', weight=0.3):.4f}",
        "Its docstring asks for logits and promises a sigmoid that is not applied: probabilities are "
        "what it needs. Ours takes logits.",
    ]
    many, classes = batch("mc2d")
    monai = AsymmetricUnifiedFocalLoss(to_onehot_y=True, num_classes=many.shape[1])
    swapped = many[:, [0, 1, 3, 2]].softmax(1)
    unseen = float(monai(many.softmax(1), classes)), float(monai(swapped, classes))
    assert unseen[0] == unseen[1]
    yield [
        f"MONAI, the same, {many.shape[1]} classes (`mc2d`)",
        f"{unseen[0]:.4f}",
        f"{ours('UnifiedFocalLoss', 'mc2d', delta=0.7):.4f}",
        "MONAI's sees classes 0 and 1 only: exchanging the predictions of the others leaves its value "
        "as it is. Ours is the mean over all classes.",
    ]
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
    absent = torch.zeros_like(labels)
    focal = FocalLoss(to_onehot_y=True, use_softmax=True, alpha=0.25)
    own = ours("FocalLoss", "bin2d", alpha=0.25)
    assert abs(float(focal(logits, labels)) - own / logits.shape[1]) < 1e-6
    yield [
        "MONAI, `FocalLoss(alpha=0.25)`",
        f"{float(focal(logits, labels)):.4f}",
        f"{own:.4f}",
        "α is used alike (α for foreground, 1 − α for background), but MONAI takes the mean over the channels "
        "too, of which all but one are 0 in each voxel: its value shrinks with every class that is added. Ours "
        "is the mean over voxels, as Lin's equation 5.",
    ]
    generalized = GeneralizedDiceLoss(to_onehot_y=True, softmax=True)
    yield [
        "MONAI, `GeneralizedDiceLoss`, a class that is absent",
        f"{float(generalized(logits, absent)):.4f}",
        f"{float(losses.GeneralizedDiceLoss()(logits, absent)):.4f}",
        "No difference: both give an absent class the largest finite weight; with 1/0² the loss "
        "would be blind to all others.",
    ]


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
    (ROOT / "docs" / "numerics.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
