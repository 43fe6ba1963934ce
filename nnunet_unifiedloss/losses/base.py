"""The base class of all losses: shared options, input checks and the registry."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import TypedDict, Unpack

from nnunet_unifiedloss.losses.checks import check_flag, check_label, check_number
from nnunet_unifiedloss.losses.probabilities import Batch, Counts, LabelBatch, RegionBatch


class Options(TypedDict, total=False):
    """Options of every loss; nnU-Net's trainers fill them in from data set and plans."""

    regions: bool
    ignore_label: int | None
    batch_dice: bool
    ddp: bool


class SegmentationLoss(nn.Module):
    """Base class of all losses: a formula over the :class:`~.probabilities.Batch`.

    A subclass implements :meth:`evaluate`. If its name ends in ``Loss``, it enters the registry and
    so becomes available as a trainer, with its parameters.

    Attributes:
        family: distribution, region, boundary, structural or compound.
        paper: Where the loss comes from.
        when: One line on when to use it.
        when_not: One line on when not to.
        compiles: Whether ``torch.compile`` takes it as one graph.
        scheduled: Whether :meth:`start_epoch` changes its weights.
        weights: Weight of each summand of :meth:`terms`, where it has one of its own.

    Args:
        regions: False: softmax over mutually exclusive labels, channel 0 is the background. True:
            sigmoid for each, possibly overlapping, region (nnU-Net's region-based training); the
            loss is the mean over regions of the loss on {background, region}.
        ignore_label: Label of voxels that count nowhere. With ``regions=True`` any value other than
            None means that the target's last channel marks the ignored voxels.
        batch_dice: Sum the soft counts of overlap losses over the batch instead of per sample.
        ddp: In distributed training, sum over ranks what one rank would sum over the whole batch.

    Shape:
        - logits: (B, C, *S), float16, bfloat16, float32 or float64; S has two or three axes.
        - target: (B, 1, *S) or (B, *S) of labels; with ``regions=True`` (B, C, *S) of 0 and 1, plus
          one channel where there is an ignore label. Any dtype.
        - returns a float32 scalar; float64 for float64 logits.

    Raises:
        TypeError: An argument has the wrong type, or the logits are not floating point.
        ValueError: An argument is out of range; shapes do not fit; a label has no channel (noticed
            on the CPU only: on a GPU the check would stall the training).
    """

    registry: ClassVar[dict[str, type[SegmentationLoss]]] = {}
    family: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    when: ClassVar[str] = ""
    when_not: ClassVar[str] = ""
    compiles: ClassVar[bool] = True
    scheduled: ClassVar[bool] = False

    def __init_subclass__(cls, *, abstract: bool = False) -> None:
        super().__init_subclass__()
        if abstract or not cls.__name__.endswith("Loss"):
            return
        known = SegmentationLoss.registry.get(cls.__name__, cls)
        # nnU-Net loads modules of external trainers anew each time it looks for one
        if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TypeError(f"a loss named {cls.__name__} exists already, in {known.__module__}")
        SegmentationLoss.registry[cls.__name__] = cls
        cls.__signature__ = _explicit_signature(cls)  # type: ignore[attr-defined]

    def __init__(
        self,
        *,
        regions: bool = False,
        ignore_label: int | None = None,
        batch_dice: bool = False,
        ddp: bool = False,
        **unknown: object,
    ) -> None:
        super().__init__()
        if unknown:
            name, value = next(iter(unknown.items()))
            possible = ", ".join([*self.defaults(), *Options.__annotations__])
            raise TypeError(
                f"{type(self).__name__} has no argument {name}={value!r}; possible: {possible}"
            )
        self.weights: dict[str, float] = {}
        for name, flag in (("regions", regions), ("batch_dice", batch_dice), ("ddp", ddp)):
            check_flag(name, flag)
        self.regions = regions
        self.ignore_label = check_label("ignore_label", ignore_label)
        self.batch_dice = batch_dice
        self.ddp = ddp

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The hyperparameters of this loss with their defaults, in the constructor's order."""
        parameters = inspect.signature(cls).parameters.values()
        return {p.name: p.default for p in parameters if p.name not in Options.__annotations__}

    @property
    def options(self) -> Options:
        """The shared options, for the parts of a compound loss."""
        return {
            "regions": self.regions,
            "ignore_label": self.ignore_label,
            "batch_dice": self.batch_dice,
            "ddp": self.ddp,
        }

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The hyperparameters of this loss with the values they have."""
        return {name: getattr(self, name) for name in self.defaults()}

    def extra_repr(self) -> str:
        """The hyperparameters and options, as they would be passed to the constructor."""
        values = {**self.hyperparameters, **self.options}
        return ", ".join(f"{name}={value!r}" for name, value in values.items())

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch, a scalar."""
        return self.evaluate(self.batch(logits, target))

    def terms(
        self, logits: Tensor, target: Tensor, zoom: tuple[float, ...] | None = None
    ) -> dict[str, Tensor]:
        """The summands of the loss by name; their sum is the loss.

        Args:
            logits: As in a call of the loss.
            target: As in a call of the loss.
            zoom: How many times larger than the image's voxels those of this output are along each
                axis, in deep supervision; only losses with a ``spacing`` use it.
        """
        return self.evaluate_terms(self.batch(logits, target, zoom))

    def start_epoch(self, epoch: int, num_epochs: int, previous: Mapping[str, float]) -> None:
        """Adapt to the progress of the training; called before each epoch.

        Most losses do nothing. Whatever is set here must follow from the arguments alone, so that
        an interrupted training continues with the same values.

        Args:
            epoch: The epoch that begins, from 0.
            num_epochs: Number of epochs of the training.
            previous: Mean of each summand over the previous epoch, without its weight.
        """

    def evaluate(self, batch: Batch) -> Tensor:
        """The loss of a batch; each loss implements it."""
        raise NotImplementedError(f"{type(self).__name__} does not implement evaluate(batch)")

    def evaluate_terms(self, batch: Batch) -> dict[str, Tensor]:
        """The summands of the loss by name."""
        return {type(self).__name__.removesuffix("Loss"): self.evaluate(batch)}

    def batch(self, logits: Tensor, target: Tensor, zoom: tuple[float, ...] | None = None) -> Batch:
        """Check the shapes and return the quantities that all terms of the loss share."""
        self._check_input(logits, target)
        options = {"batch_dice": self.batch_dice, "ddp": self.ddp, "zoom": zoom}
        if self.regions:
            has_ignore = self.ignore_label is not None
            return RegionBatch(logits, target, has_ignore=has_ignore, **options)
        return LabelBatch(logits, target, ignore_label=self.ignore_label, **options)

    def _check_input(self, logits: Tensor, target: Tensor) -> None:
        for name, tensor in (("logits", logits), ("target", target)):
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{name}: expected a torch.Tensor, got {type(tensor).__name__}")
        if not logits.is_floating_point():
            raise TypeError(f"logits: expected floating point, got {logits.dtype}")
        if target.is_complex():
            raise TypeError(f"target: expected labels, got {target.dtype}")
        if logits.ndim not in (4, 5):
            raise ValueError(
                f"logits: expected shape (B, C, *S) with two or three spatial axes, "
                f"got {tuple(logits.shape)}"
            )
        if target.device != logits.device:
            raise ValueError(
                f"target: is on device {target.device}, logits are on {logits.device}; "
                f"move it with target.to(logits.device)"
            )
        if logits.numel() == 0:
            raise ValueError(f"logits: shape {tuple(logits.shape)} holds no voxel")
        expected = self._target_shapes(logits)
        if tuple(target.shape) not in expected:
            raise ValueError(
                f"target: expected shape {' or '.join(map(str, expected))} for logits of shape "
                f"{tuple(logits.shape)} with regions={self.regions}, "
                f"ignore_label={self.ignore_label}, got {tuple(target.shape)}"
            )

    def _target_shapes(self, logits: Tensor) -> list[tuple[int, ...]]:
        batch, channels, *space = logits.shape
        if self.regions:
            return [(batch, channels + (self.ignore_label is not None), *space)]
        if channels < 2:
            raise ValueError(
                f"logits: labels mode needs a channel for the background and one for each class, "
                f"got {channels} channel; for one foreground channel use regions=True"
            )
        return [(batch, 1, *space), (batch, *space)]


class OverlapOptions(Options, total=False):
    """Options of losses of soft counts."""

    smooth: float
    include_background: bool


class OverlapLoss(SegmentationLoss, abstract=True):
    """Base class of losses of soft counts.

    Args:
        smooth: s ≥ 0, added to numerator and denominator.
        include_background: Use the background class too.
        **options: See :class:`SegmentationLoss`.
    """

    family = "region"

    def __init__(
        self, *, smooth: float = 1e-5, include_background: bool = False, **options: Unpack[Options]
    ) -> None:
        super().__init__(**options)
        self.smooth = check_number("smooth", smooth)
        self.include_background = check_flag("include_background", include_background)

    def counts(self, batch: Batch) -> Counts:
        """Soft counts of the classes in use, (B, G, K)."""
        first = 0 if self.include_background else 1
        return Counts(*(count[..., first:] for count in batch.counts))


class CompoundLoss(SegmentationLoss, abstract=True):
    """A weighted sum of losses that share one softmax.

    Subclasses call :meth:`combine` at the end of their constructor, or implement
    :meth:`evaluate_terms` where a summand is not a loss of the catalogue.
    """

    family = "compound"

    def combine(self, **weighted: tuple[float, SegmentationLoss]) -> None:
        """Set the summands: name → (weight, loss). A summand with weight 0 is left out."""
        self.weights = {name: weight for name, (weight, _) in weighted.items() if weight}
        self.parts = nn.ModuleDict({name: weighted[name][1] for name in self.weights})

    def evaluate(self, batch: Batch) -> Tensor:
        """Σ weight · loss."""
        return torch.stack(list(self.evaluate_terms(batch).values())).sum()

    def evaluate_terms(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted summands by name."""
        terms = {}
        for name, loss in self.parts.items():
            if isinstance(loss, SegmentationLoss):
                terms[name] = self.weights[name] * loss.evaluate(batch)
        return terms


def _explicit_signature(cls: type[SegmentationLoss]) -> inspect.Signature:
    """The constructor's signature with inherited arguments and the shared options spelt out."""
    found: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        constructor = vars(base).get("__init__")
        if constructor and issubclass(base, SegmentationLoss):
            for name, parameter in inspect.signature(constructor).parameters.items():
                if parameter.kind is parameter.KEYWORD_ONLY:
                    found.setdefault(name, parameter)
    shared = Options.__annotations__
    return inspect.Signature(sorted(found.values(), key=lambda parameter: parameter.name in shared))


__all__ = [
    "CompoundLoss",
    "Options",
    "OverlapLoss",
    "OverlapOptions",
    "SegmentationLoss",
]
