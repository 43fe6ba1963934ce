"""Makes docs/losses.md and its figures from the losses' docstrings and benchmarks/measured.json.

python tools/losses_page.py            # write the page
python tools/losses_page.py --figures  # and draw the figures
python tools/losses_page.py --check    # exit code 1 where the page is not what would be written
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
from pathlib import Path

from nnunet_unifiedloss.losses import SegmentationLoss
from nnunet_unifiedloss.training.catalogue import TrainerEntry, catalogue
from nnunet_unifiedloss.training.names import format_value

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGE = DOCS / "losses.md"
FAMILIES = {
    "distribution": "Distribution-based: each voxel by itself",
    "region": "Region-based: the overlap of prediction and reference",
    "boundary": "Boundary-based: distances",
    "structural": "Structural: local windows",
    "compound": "Compound: weighted sums",
}
FIGURES = {
    "distribution": "Loss and size of its gradient against the probability of the true class, for "
    "a foreground voxel; dashed for a background voxel.",
    "region": "Loss and its slope against the Tversky index (or Dice) of one class.",
    "boundary": "Size of the gradient of a voxel with p = 0.5 against its distance from the "
    "object's boundary; inside of the object on the left. That of Boundary is 0 next to it.",
    "structural": "Loss and size of the gradient of a foreground voxel at an edge against its "
    "probability of being foreground; both jump where a voxel nearby falls below the threshold β.",
    "compound": "Loss and size of its gradient against the probability of the true class, the "
    "same in all voxels, of which 1 % are foreground.",
}
INTRODUCTION = """# The losses

<!-- Written by tools/losses_page.py; change the docstrings and run it again. -->

Every loss is a trainer, `nnUNetTrainer` + its name, and a PyTorch module in
`nnunet_unifiedloss.losses`. p is the softmax of the logits, with `regions=True` the sigmoid, where
the loss is the mean over regions of that on {background, region}; p_t is the probability of a
voxel's true class, CE = −ln p_t; TP, FP, FN are soft counts; s is `smooth`.

*Cost* is time and peak memory of forward and backward, and *gradient* the norm of the gradient
with respect to the logits, each relative to nnU-Net's default loss (Dice + cross entropy) on the
same logits: `python benchmarks/loss_cost.py --json benchmarks/measured.json` on a patch of
(2, 4, 96, 96, 96), `python benchmarks/gradient_norm.py --json benchmarks/measured.json`. SGD feels
the scale of a loss: the `_lr` beside it, nnU-Net's 0.01 divided by the ratio, makes trainings
comparable; see [training.md](training.md). "Ma 2021" is the comparison of 20 losses on four
segmentation tasks in
[Medical Image Analysis 71, 102035](https://doi.org/10.1016/j.media.2021.102035): no loss was best
on all of them, compound losses with a Dice term were the most robust.
"""


def page() -> str:
    """The whole page."""
    measured = json.loads((ROOT / "benchmarks" / "measured.json").read_text())
    parts = [INTRODUCTION]
    for family, title in FAMILIES.items():
        entries = [entry for entry in catalogue() if entry.family == family]
        parts.append(
            f"## {title}\n\n![{FIGURES[family]}](figures/{family}.png)\n\n*{FIGURES[family]}*\n"
        )
        parts += [section(entry, measured) for entry in entries]
    return "\n".join(parts)


def section(entry: TrainerEntry, measured: dict[str, dict[str, float]]) -> str:
    """What the page says about one loss."""
    docstring = inspect.getdoc(SegmentationLoss.registry[entry.loss]) or ""
    summary, _, body = docstring.partition("\n\n")
    text, _, blocks = body.partition("Args:\n")
    lines = [f"### {entry.loss}", f"{summary}", markdown(text)]
    arguments = fields(blocks.partition("\n\n")[0])
    if entry.parameters:
        rows = [
            f"| `{name}` | {default_of(value)} | {arguments[name]} |"
            for name, value in entry.parameters.items()
        ]
        lines.append("\n".join(["| parameter | default | meaning |", "| --- | --- | --- |", *rows]))
    time, memory, gradient = (measured[c][entry.loss] for c in ("time", "memory", "gradient"))
    lines.append(f"**When:** {entry.when} **When not:** {entry.when_not}")
    cost = f"`{entry.trainer}` · cost {time:.2g} × time, {memory:.2g} × memory · "
    rate = f", comparable with `_lr{format_value(float(f'{0.01 / gradient:.2g}'))}`"
    # no learning rate makes up for a gradient that all but vanishes for some predictions
    lines.append(f"{cost}gradient {gradient:.2g} ×{rate if gradient > 0.05 else ''}")
    reference = re.search(r"References:\n((?:    .*\n?)+)", docstring)
    if reference:
        lines.append(inspect.cleandoc(reference[1]).replace("\n", " "))
    return "\n\n".join(line for line in lines if line) + "\n"


def markdown(text: str) -> str:
    """A docstring's text with its equations as Markdown."""

    def equation(match: re.Match[str]) -> str:
        return f"```math\n{inspect.cleandoc(match[1])}\n```\n"

    text = re.sub(r"\.\. math:: ((?:.+\n?)(?:    .+\n?)*)", equation, text)
    return re.sub(r":\w+:`~?\.?(?:\w+\.)*(\w+)`", r"`\1`", text).strip()


def fields(block: str) -> dict[str, str]:
    """Name → description of a docstring's arguments."""
    found = re.findall(r"^    (\*{0,2}\w+): ((?:.*\n?)(?:        .*\n?)*)", block, re.MULTILINE)
    return {name: re.sub(r"\s+", " ", markdown(text)) for name, text in found}


def default_of(value: object) -> str:
    """A default as a trainer's name would spell it."""
    return "none" if value is None else format_value(value)


def main() -> int:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit 1 on a difference")
    parser.add_argument("--figures", action="store_true", help="draw the figures too")
    arguments = parser.parse_args()
    text = page()
    if arguments.check:
        if PAGE.read_text(encoding="utf-8") != text:
            print(f"{PAGE} is not what the docstrings say; run: python tools/losses_page.py")
            return 1
        return 0
    PAGE.write_text(text, encoding="utf-8")
    if arguments.figures:
        from figures import draw_all

        draw_all(DOCS / "figures")
    return 0


if __name__ == "__main__":
    sys.exit(main())
