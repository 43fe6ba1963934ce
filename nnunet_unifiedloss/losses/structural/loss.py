"""The structural similarity loss."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from nnunet_unifiedloss.losses.arguments import check_count, check_number
from nnunet_unifiedloss.losses.autograd import differentiable_once, of_maps
from nnunet_unifiedloss.losses.base import Options, SegmentationLoss
from nnunet_unifiedloss.losses.devices import has_loops
from nnunet_unifiedloss.losses.distributed import maximum_over_ranks
from nnunet_unifiedloss.losses.structural import maps
from nnunet_unifiedloss.losses.structural.maps import Probabilities, Window
from nnunet_unifiedloss.losses.view import View


class StructuralSimilarityLoss(SegmentationLoss):
    r"""Structural similarity loss: cross entropy where prediction and reference correlate badly.

    .. math:: L = \lambda \operatorname{mean}(CE) + (1 - \lambda) \frac{\sum e f \, CE}{\sum f},
        \quad e = \left| \frac{y - \mu_y + c}{\sigma_y + c} - \frac{p - \mu_p + c}{\sigma_p + c}
        \right|, \quad f = 1[e > \beta \max e]

    μ and σ are mean and standard deviation in a Gaussian window (σ 1.5 voxels) around the voxel,
    computed from the voxels that count; CE = −ln p_t. Sums and maximum are over batch, voxels and
    classes, with ``regions=True`` for each region. The loss jumps where f changes.

    Args:
        window: Width of the window in voxels, an odd number ≥ 3.
        c: Stabilises the quotients, > 0.
        beta: Share of the largest e below which a voxel is left out, 0 ≤ β < 1.
        weight: λ, share of the plain cross entropy, 0 ≤ λ ≤ 1.
        **options: regions, ignore_label, batch_dice, ddp; see :class:`SegmentationLoss`.

    Shape:
        logits (B, C, \*S), target (B, 1, \*S) or (B, \*S), with ``regions=True`` (B, C, \*S);
        returns a scalar.

    Raises:
        TypeError, ValueError: An argument is out of range; see also :class:`SegmentationLoss`.

    Example:
        >>> import torch
        >>> logits, target = torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 4, 4)
        >>> round(StructuralSimilarityLoss()(logits, target).item(), 4)  # nothing varies: CE / 2
        0.3466

    References:
        Zhao et al.: Correlation maximized structural similarity loss for semantic segmentation,
        2019 (arXiv:1910.08711). The image's border is handled like a border to ignored voxels,
        and σ + c is never below c.
    """

    paper = "Zhao 2019, arXiv:1910.08711"
    when = "Thin or textured structures, where neighbours should agree."
    when_not = "Large flat objects: only their outline gets the extra weight."

    def __init__(
        self,
        *,
        window: int = 3,
        c: float = 0.01,
        beta: float = 0.1,
        weight: float = 0.5,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(**options)
        self.window = check_count("window", window)
        if window < 3 or window % 2 == 0:
            raise ValueError(f"window: must be an odd number >= 3, got {window}")
        self.c = check_number("c", c, above=True)
        self.beta = check_number("beta", beta, maximum=1, below=True)
        self.weight = check_number("weight", weight, maximum=1)

    def evaluate(self, view: View) -> Tensor:
        """λ · mean CE + (1 − λ) · Σ e·f·CE / Σ f."""
        window = Window.of(self.window, view)
        weighted, number = _WeightedCrossEntropy.apply(
            view.others,
            view.cross_entropy,
            view.p_t_value,
            view.truth,
            window,
            self.c,
            self.beta,
            self.ddp,
        )
        number = view.over_batch(number).clamp_min(1)
        similarity = (view.over_batch(weighted) / number).mean()
        plain = view.mean_over_voxels(view.cross_entropy)
        return self.weight * plain + (1 - self.weight) * similarity


class _WeightedCrossEntropy(torch.autograd.Function):
    """Σ e·f·CE and Σ f over voxels and classes, (B, G).

    It is a function of the others' probabilities and of CE, which has that of the true class, p_t.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 (torch's own type)
        others: Tensor,
        cross_entropy: Tensor,
        p_t: Tensor,
        truth: Tensor,
        window: Window,
        c: float,
        beta: float,
        over_ranks: bool,
    ) -> tuple[Tensor, Tensor]:
        ctx.loops = has_loops(others)
        steps = _steps(ctx.loops)
        probabilities = Probabilities(others, p_t, truth)
        difference, largest, kept = steps.differences(probabilities, window, c)
        largest = maximum_over_ranks(largest) if over_ranks else largest
        structure, number, sign = steps.select(difference, beta * largest)
        ctx.c, ctx.weights, ctx.all_count = c, window.weights, window.all_count
        # memory for the slopes: new memory takes the CPU long to get
        ctx.spare = difference if ctx.loops and difference.shape == others.shape else None
        ctx.save_for_backward(
            others, cross_entropy, p_t, truth, window.norm, structure, sign, *kept
        )
        ctx.mark_non_differentiable(number)
        return (structure * cross_entropy).flatten(2).sum(2), number

    @staticmethod
    @differentiable_once
    def backward(
        ctx: Any,  # noqa: ANN401
        grad: Tensor,
        _number: None,
    ) -> tuple[Tensor, Tensor, None, None, None, None, None, None]:
        others, cross_entropy, p_t, truth, norm, structure, sign, *kept = ctx.saved_tensors
        window = Window(ctx.weights, norm, ctx.all_count)
        probabilities = Probabilities(others, p_t, truth)
        steps = _steps(ctx.loops)
        grad = of_maps(grad, structure)
        by_structure = cross_entropy * grad
        spare, ctx.spare = ctx.spare, None  # once, as what it becomes is no longer ours
        slopes, of_truth = steps.slopes(
            by_structure, sign, probabilities, window, ctx.c, kept, spare
        )
        # p_t is exp(−CE): its slope is −p_t
        of_cross_entropy = of_truth.mul_(p_t).neg_().addcmul_(structure, grad)
        return slopes, of_cross_entropy, None, None, None, None, None, None


def _steps(in_loops: bool) -> ModuleType:
    if not in_loops:
        return maps
    from nnunet_unifiedloss.losses.structural import planes  # not before it is needed: Numba

    return planes
