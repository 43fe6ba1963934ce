"""Write docs/losses.md from the losses' docstrings and benchmarks/measured.json.

python tools/losses_page.py            # write the page
python tools/losses_page.py --figures  # also draw the figures
python tools/losses_page.py --check    # exit code 1 if the page is out of date
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
import textwrap
from pathlib import Path

from nnunet_unifiedloss.losses import SegmentationLoss
from nnunet_unifiedloss.training.catalogue import TrainerEntry, catalogue
from nnunet_unifiedloss.training.names import format_value

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGE = DOCS / "losses.md"
WIDTH = 120
# family: title, figure, caption
FAMILIES = {
    "distribution": (
        "Distribution-based losses: one voxel at a time",
        "Distribution-based losses",
        "Loss and size of its gradient against the probability of the true class. Solid: a "
        "foreground voxel; dashed: a background voxel.",
    ),
    "region": (
        "Region-based losses: overlap of prediction and reference",
        "Region-based losses",
        "Loss and size of its derivative against the Tversky index (or Dice) of one class.",
    ),
    "boundary": (
        "Boundary-based losses: distances",
        "Boundary-based losses",
        "Size of the gradient of a voxel with p = 0.5 against its distance from the object's "
        "boundary. Negative distances are inside the object. The gradient of Boundary is 0 next "
        "to the boundary on the inside.",
    ),
    "structural": (
        "Structural losses: local windows",
        "Structural losses",
        "Loss and size of the gradient of a foreground voxel at an edge against its foreground "
        "probability. Both jump where a neighbouring voxel falls below the threshold β.",
    ),
    "compound": (
        "Compound losses: weighted sums",
        "Compound losses",
        "Loss and size of its gradient against the probability of the true class. All voxels have "
        "the same probability, and 1 % of them are foreground.",
    ),
}
INTRODUCTION = """# The losses

<!-- Written by tools/losses_page.py. Change the docstrings and run it again. -->

Every loss is a PyTorch module in `nnunet_unifiedloss.losses`. It is also a trainer: replace the
suffix `Loss` with the prefix `nnUNetTrainer`.

Notation: p is the softmax of the logits, p_t is the probability of a voxel's true class, and CE =
−ln p_t. TP, FP and FN are soft counts, y is the one-hot reference, and s is `smooth`. With
`regions=True`, p is the sigmoid of the logits, and the loss is the mean over regions of the loss on
{background, region}. The examples assume that the loss is imported from
`nnunet_unifiedloss.losses`.

*Cost* is the time and peak memory of forward and backward pass on a patch of (2, 4, 96, 96, 96)
in eager mode on a CPU (`python benchmarks/loss_cost.py --shape 2 4 96 96 96 --json
benchmarks/measured.json`); [cost.md](cost.md) has compiled losses. *Gradient* is the norm of the
gradient with respect to the logits, with its smallest and largest value over shares of foreground
and stages of a training (`python benchmarks/gradient_norm.py --json benchmarks/measured.json`).
Both are relative to nnU-Net's default loss (Dice + cross entropy) on the same logits.

*Scale* is the constant that the trainer multiplies the loss by, so that its gradient has the size
of the default's. The modules in `nnunet_unifiedloss.losses` are not scaled. Losses whose gradient
ratio no constant describes have scale 1 ([training.md](training.md)).

"Ma 2021" refers to the comparison of 20 losses on four segmentation tasks in [Medical Image
Analysis 71, 102035](https://doi.org/10.1016/j.media.2021.102035). No loss was best on all tasks;
compound losses with a Dice term were the most robust.
"""


def page() -> str:
    """The whole page."""
    measured = json.loads((ROOT / "benchmarks" / "measured.json").read_text())
    parts = [INTRODUCTION, shared_options()]
    for family, (title, figure, caption) in FAMILIES.items():
        entries = [entry for entry in catalogue() if entry.family == family]
        picture = f"![{figure}](figures/{family}.png)"
        parts.append(f"## {title}\n\n{picture}\n\n{wrapped(f'*{caption}*')}\n")
        parts += [section(entry, measured) for entry in entries]
    return "\n".join(parts)


def shared_options() -> str:
    """The section on the options, shapes and errors of every loss."""
    docstring = inspect.getdoc(SegmentationLoss) or ""
    defaults = inspect.signature(SegmentationLoss).parameters
    options = fields(block(docstring, "Args"))
    rows = [(name, default_of(defaults[name].default), text) for name, text in options.items()]
    shapes = [wrapped(line, "  ") for line in bullets(block(docstring, "Shape"))]
    errors = [
        wrapped(f"- `{name}`: {text}", "  ")
        for name, text in fields(block(docstring, "Raises")).items()
    ]
    lines = ["## Options of every loss", "All arguments are keyword-only.", table("option", rows)]
    lines += ["Shapes of `loss(logits, target)`:", "\n".join(shapes)]
    lines += ["Errors:", "\n".join(errors)]
    return "\n\n".join(lines) + "\n"


def section(entry: TrainerEntry, measured: dict[str, dict[str, float]]) -> str:
    """The section on one loss."""
    docstring = inspect.getdoc(SegmentationLoss.registry[entry.loss]) or ""
    summary, _, body = docstring.partition("\n\n")
    text = re.split(r"^(?:Args|Example):$", body, maxsplit=1, flags=re.MULTILINE)[0]
    lines = [f"### {entry.loss}", summary, markdown(text)]
    if entry.parameters:
        meaning = meanings(SegmentationLoss.registry[entry.loss])
        rows = [(n, default_of(value), meaning[n]) for n, value in entry.parameters.items()]
        lines.append(table("parameter", rows))
    lines.append(f"```pycon\n{block(docstring, 'Example')}\n```")
    lines.append(wrapped(f"**When:** {entry.when} **When not:** {entry.when_not}"))
    lines.append(wrapped(cost(entry, measured)))
    lines.append(wrapped(f"Reference: {block(docstring, 'References')}"))
    return "\n\n".join(line for line in lines if line) + "\n"


def meanings(loss: type[SegmentationLoss]) -> dict[str, str]:
    """The meaning of each parameter, from the class or the nearest base class that documents it."""
    found: dict[str, str] = {}
    for base in reversed(loss.__mro__[: loss.__mro__.index(SegmentationLoss)]):
        docstring = inspect.cleandoc(base.__doc__ or "")
        if re.search(r"^Args:$", docstring, flags=re.MULTILINE):
            found |= fields(block(docstring, "Args"))
    return found


def cost(entry: TrainerEntry, measured: dict[str, dict[str, float]]) -> str:
    """The line on the trainer, its cost, its gradient and its scale."""
    columns = ("time", "memory", "gradient", "gradient_smallest", "gradient_largest")
    time, memory, *gradient = (measured[column][entry.loss] for column in columns)
    mean, smallest, largest = (format_value(float(f"{value:.2g}")) for value in gradient)
    return (
        f"`{entry.trainer}` · cost {time:.2g} × time, {memory:.2g} × memory · "
        f"gradient {mean} × ({smallest} to {largest}) · scale {entry.scale:g}"
    )


def table(heading: str, rows: list[tuple[str, str, str]]) -> str:
    """A Markdown table of names, defaults and meanings."""
    lines = [f"| {heading} | default | meaning |", "| --- | --- | --- |"]
    return "\n".join(lines + [f"| `{n}` | {default} | {text} |" for n, default, text in rows])


def markdown(text: str) -> str:
    """Convert the equations and roles of a docstring to Markdown."""

    def equation(match: re.Match[str]) -> str:
        return f"```math\n{inspect.cleandoc(match[1])}\n```\n"

    text = re.sub(r":\w+:`~?\.?(?:\w+\.)*(\w+)`", r"`\1`", text).replace("``", "`")
    return re.sub(r"\.\. math:: ((?:.+\n?)(?:    .+\n?)*)", equation, text).strip()


def block(docstring: str, heading: str) -> str:
    """The indented text below a heading of a docstring, without its indentation."""
    match = re.search(rf"^{heading}:\n((?:(?:    .*)?\n?)+)", docstring, re.MULTILINE)
    return textwrap.dedent(match[1]).strip() if match else ""


def fields(text: str) -> dict[str, str]:
    """Name → description of the entries of a docstring's section."""
    found = re.findall(r"^(\w+): ((?:.*\n?)(?:    .*\n?)*)", text, re.MULTILINE)
    return {name: re.sub(r"\s+", " ", markdown(text)) for name, text in found}


def bullets(text: str) -> list[str]:
    """The items of a list, each on one line."""
    items = re.findall(r"^- (?:.*\n?)(?:  .*\n?)*", text, re.MULTILINE)
    return [re.sub(r"\s+", " ", item).strip() for item in items]


def wrapped(text: str, indent: str = "") -> str:
    """Text in lines of the page's width."""
    return textwrap.fill(
        re.sub(r"\s+", " ", markdown(text)), WIDTH, subsequent_indent=indent,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def default_of(value: object) -> str:
    """A default: numbers in the spelling of a trainer's name, other values in Python's."""
    return str(value) if value is None or isinstance(value, bool) else format_value(value)


def main() -> int:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit 1 if the page is out of date")
    parser.add_argument("--figures", action="store_true", help="draw the figures too")
    arguments = parser.parse_args()
    text = page()
    if arguments.check:
        if PAGE.read_text(encoding="utf-8") != text:
            print(f"{PAGE} is out of date; run: python tools/losses_page.py")
            return 1
        return 0
    PAGE.write_text(text, encoding="utf-8")
    if arguments.figures:
        from figures import draw_all

        draw_all(DOCS / "figures")
    return 0


if __name__ == "__main__":
    sys.exit(main())
