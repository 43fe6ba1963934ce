"""The rules that lead from findings to trainers: one table, which docs/advise.md shows."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from nnunet_unifiedloss.advise.findings import StructureFindings

__all__ = ["BASELINE", "COST", "FACTS", "RULES", "Condition", "Rule", "matching"]

BASELINE = "nnUNetTrainer"

# facts of a structure, as texts with their value or with a threshold
FACTS = {
    "share": "{} of the voxels",
    "rarest": "rarest structure {} of the voxels",
    "largest_ratio": "{} times smaller than the largest structure",
    "structures": "{} structures",
    "absent": "absent in {} of the cases",
    "per_case": "{} components per case",
    "tiny": "{} of the components below 5 voxels",
    "patches": "in {} of the training patches",
    "tubular": "{} of the volume in elongated components",
    "axes": "images with {} axes",
}
_PERCENT = {"share", "rarest", "absent", "tiny", "patches", "tubular"}
_COMPARE: dict[str, Callable[[float, float], bool]] = {"<": operator.lt, "≥": operator.ge}


@dataclass(frozen=True)
class Condition:
    """One comparison of a fact with a threshold; a fact that is not known fulfils none."""

    fact: str
    relation: Literal["<", "≥"]
    threshold: float

    def holds(self, structure: StructureFindings) -> bool:
        """Return True if it holds for a structure."""
        value: float | None = getattr(structure, self.fact)
        return value is not None and _COMPARE[self.relation](value, self.threshold)

    def value(self, structure: StructureFindings) -> str:
        """Return the fact of a structure as text."""
        return FACTS[self.fact].format(self._text(getattr(structure, self.fact)))

    def __str__(self) -> str:
        return FACTS[self.fact].format(f"{self.relation} {self._text(self.threshold)}")

    def _text(self, value: float) -> str:
        return f"{100 * value:.2g} %" if self.fact in _PERCENT else f"{value:.3g}"


@dataclass(frozen=True)
class Rule:
    """One row of the table.

    Attributes:
        conditions: All must hold for the same structure.
        verdict: Try these trainers first, or not.
        trainers: Names of trainers.
        reason: One sentence.
        evidence: Page of ``docs`` or paper, with what was measured there.
    """

    conditions: tuple[Condition, ...]
    verdict: Literal["try", "avoid"]
    trainers: tuple[str, ...]
    reason: str
    evidence: str


_If = Condition
_RARE = _If("share", "<", 0.01)
_MANY = _If("per_case", "≥", 5)
_LARGE = _If("rarest", "≥", 0.02)
_TUBULAR = _If("tubular", "≥", 0.5)

RULES = (
    Rule(
        (),
        "try",
        (BASELINE,),
        "The baseline in any case: nnU-Net's Dice + cross entropy is hard to beat.",
        "docs/choosing.md; Isensee 2018, arXiv:1809.10486",
    ),
    Rule(
        (_RARE,),
        "try",
        ("nnUNetTrainerUnifiedFocal",),
        "Made for rare structures: it focuses on hard voxels of rare classes.",
        "docs/choosing.md, docs/advise.md#measured-on-idrid; Yeung 2021, arXiv:2102.04525",
    ),
    Rule(
        (_RARE, _MANY),
        "try",
        ("nnUNetTrainerUnifiedFocal_delta0.7",),
        "Many small lesions: a larger δ lets fewer of them be missed, for more false positives.",
        "docs/choosing.md, docs/tuning.md",
    ),
    Rule(
        (_If("structures", "≥", 3), _If("largest_ratio", "≥", 5)),
        "try",
        ("nnUNetTrainerDiceFocal",),
        "Many classes of very different size: Dice weighs them equally, and easy voxels fade out.",
        "docs/choosing.md; Zhu 2019, arXiv:1808.05238",
    ),
    Rule(
        (_TUBULAR,),
        "try",
        ("nnUNetTrainerStructuralSimilarity",),
        "Thin structures: it compares neighbourhoods instead of single voxels.",
        "docs/losses.md; Zhao 2019, arXiv:1910.08711",
    ),
    Rule(
        (_LARGE,),
        "try",
        ("nnUNetTrainerDiceTopK", "nnUNetTrainerDiceFocal"),
        "No severe imbalance: compounds with a Dice term were the most robust of 20 losses.",
        "docs/losses.md; Ma 2021, Medical Image Analysis 71, 102035",
    ),
    Rule(
        (_LARGE,),
        "avoid",
        ("nnUNetTrainerTversky", "nnUNetTrainerFocalTversky"),
        "No severe imbalance: on hippocampus, Tversky and FocalTversky were 0.025 and 0.021 below "
        "the baseline in Dice.",
        "docs/hippocampus.md",
    ),
    Rule(
        (_LARGE,),
        "avoid",
        ("nnUNetTrainerUnifiedFocal",),
        "No severe imbalance: on hippocampus, it was on a par with the baseline in Dice.",
        "docs/hippocampus.md: difference −0.002 [−0.006, +0.003]",
    ),
    Rule(
        (_RARE,),
        "avoid",
        ("nnUNetTrainerUnifiedFocal_lr0.036",),
        "A higher learning rate instead of a scaled loss: on IDRiD, it predicted only "
        "background in two of three runs.",
        "docs/advise.md#measured-on-idrid",
    ),
    Rule(
        (_RARE,),
        "avoid",
        ("nnUNetTrainerCrossEntropy", "nnUNetTrainerFocal"),
        "Without an overlap term, a rare structure adds hardly anything to the mean over voxels.",
        "docs/losses.md; docs/hippocampus.md: Focal missed the whole posterior part in 18 cases",
    ),
    Rule(
        (_RARE,),
        "avoid",
        ("nnUNetTrainerDice", "nnUNetTrainerJaccard"),
        "An overlap term alone is noisy on small structures: single voxels make it jump.",
        "docs/losses.md",
    ),
    Rule(
        (_If("structures", "≥", 3), _If("largest_ratio", "≥", 5)),
        "avoid",
        ("nnUNetTrainerGeneralizedDice",),
        "Unstable with several classes: the smallest takes nearly all of the weight.",
        "docs/losses.md; Ma 2021, Medical Image Analysis 71, 102035",
    ),
    Rule(
        (_If("absent", "≥", 0.2),),
        "avoid",
        ("nnUNetTrainerExponentialLogarithmic",),
        "Many cases without the structure: a Dice of 0 costs much in this loss.",
        "docs/losses.md; Wong 2018, arXiv:1809.00076",
    ),
    Rule(
        (_If("patches", "<", 0.5),),
        "avoid",
        ("nnUNetTrainerBalancedCrossEntropy", "nnUNetTrainerDiceBoundary"),
        "Most patches lack the structure: these losses then do not punish false positives there.",
        "docs/losses.md; Xie 2015, arXiv:1504.06375; Kervadec 2019, arXiv:1812.07032",
    ),
    Rule(
        (_MANY,),
        "avoid",
        ("nnUNetTrainerShapeAware",),
        "Made for single compact objects: one mean distance says little about many lesions.",
        "docs/losses.md; Al Arif 2017, MSKI",
    ),
    Rule(
        (_If("tiny", "≥", 0.2),),
        "avoid",
        ("nnUNetTrainerHausdorffER",),
        "Components of a few voxels: the first erosion removes them.",
        "docs/losses.md; Karimi 2019, arXiv:1904.10030",
    ),
    Rule(
        (_TUBULAR, _If("axes", "≥", 3)),
        "avoid",
        ("nnUNetTrainerHausdorffER",),
        "Thin rods in 3-D: the first erosion removes them.",
        "docs/losses.md; Karimi 2019, arXiv:1904.10030",
    ),
)

# time and memory relative to nnU-Net's loss, from docs/cost.md: CPU, patch (2, 4, 96, 96, 96)
COST = {
    "nnUNetTrainer": (1.0, 1.0),
    "nnUNetTrainerUnifiedFocal": (1.2, 0.95),
    "nnUNetTrainerDiceFocal": (1.01, 0.95),
    "nnUNetTrainerDiceTopK": (1.49, 0.95),
    "nnUNetTrainerStructuralSimilarity": (17.5, 4.8),
}


def matching(
    structures: Sequence[StructureFindings],
) -> list[tuple[Rule, tuple[StructureFindings, ...]]]:
    """Return the rules that apply, each with the structures for which it does."""
    found = []
    for rule in RULES:
        where = tuple(
            structure
            for structure in structures
            if structure.components and all(each.holds(structure) for each in rule.conditions)
        )
        if where:
            found.append((rule, where))
    return found
