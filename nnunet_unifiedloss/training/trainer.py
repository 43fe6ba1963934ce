"""The base class of the trainers in ``trainers/``, which gives nnU-Net a loss of our catalogue.

Everything else, deep supervision and its weights included, stays nnU-Net's own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, distributed, nn

from nnunet_unifiedloss.losses import SegmentationLoss
from nnunet_unifiedloss.losses.distributed import sum_over_ranks
from nnunet_unifiedloss.training.class_weights import count_labels, inverse_frequencies
from nnunet_unifiedloss.training.names import FROM_PLANS
from nnunet_unifiedloss.training.scales import scale_of

__all__ = ["LossTrainer", "RecordedLoss", "last_scale"]

T = TypeVar("T")

# keys of nnU-Net's log, which its checkpoints hold
_TERMS = "loss_terms"
_SCALES = "loss_scale"


class LossTrainer(nnUNetTrainer):
    """nnU-Net's trainer with another loss; subclasses set class attributes only.

    Attributes:
        loss_class: The loss.
        loss_parameters: Its hyperparameters that differ from the default.
        set_scale: Factor of the loss, or None for the constant of its class.
        set_learning_rate: nnU-Net's ``initial_lr``, or None to leave it.
        set_epochs: Number of epochs, or None to leave it.
        set_iterations: Training iterations per epoch, or None to leave it.
    """

    loss_class: ClassVar[type[SegmentationLoss]]
    loss_parameters: ClassVar[dict[str, Any]] = {}
    set_scale: ClassVar[float | None] = None
    set_learning_rate: ClassVar[float | None] = None
    set_epochs: ClassVar[int | None] = None
    set_iterations: ClassVar[int | None] = None

    num_val_iterations_per_epoch: int  # set by nnU-Net's constructor

    def initialize(self) -> None:
        """Set learning rate and schedule, then initialize as nnU-Net does.

        Not in the constructor: nnU-Net inspects the signature of it.
        """
        if self.set_learning_rate is not None:
            self.initial_lr = self.set_learning_rate
        if self.set_epochs is not None:
            self.num_epochs = self.set_epochs
        if self.set_iterations is not None:
            self.num_iterations_per_epoch = self.set_iterations
            # a short trial run should not spend its time on validation
            self.num_val_iterations_per_epoch = min(
                self.num_val_iterations_per_epoch, self.set_iterations
            )
        super().initialize()
        self.print_to_log_file(f"Loss: {self.recorded_loss.loss}")
        self.print_to_log_file(f"Loss scale: {self.recorded_loss.scale:g}")

    def load_checkpoint(self, filename_or_checkpoint: dict[str, Any] | str) -> None:
        """Continue a training with the scale that it has had; without a record, with 1."""
        super().load_checkpoint(filename_or_checkpoint)
        scale = self.set_scale or last_scale(self.logger.get_checkpoint())
        if scale != self.recorded_loss.scale:
            self.recorded_loss.scale = scale
            self.print_to_log_file(f"Loss scale: {scale:g}, as before the interruption")

    def _build_loss(self) -> nn.Module:
        """Our loss in place of nnU-Net's, inside nnU-Net's own deep supervision wrapper."""
        loss = self.loss_class(
            **self.loss_parameters | self._parameters_from_data(),
            regions=self.label_manager.has_regions,
            ignore_label=self.label_manager.ignore_label,
            batch_dice=self.configuration_manager.batch_dice,
            ddp=self.is_ddp,
        ).to(self.device)
        self.recorded_loss = RecordedLoss(
            loss,
            self.configuration_manager.patch_size,
            compiled=self._do_i_compile() and loss.compiles,
            scale=self.set_scale or scale_of(self.loss_class),
        )
        host_loss = super()._build_loss()
        if isinstance(host_loss, DeepSupervisionWrapper):
            host_loss.loss = self.recorded_loss
            return cast(nn.Module, host_loss)
        return self.recorded_loss

    def _parameters_from_data(self) -> dict[str, Any]:
        """Parameters that the name leaves to the data: physical spacing, class weights."""
        parameters: dict[str, Any] = {}
        if self.loss_parameters.get("spacing") == FROM_PLANS:
            parameters["spacing"] = tuple(self.configuration_manager.spacing)
        by_class = "class_weights" in self.loss_class.defaults()
        if by_class and self.loss_parameters.get("class_weights") is None:
            parameters["class_weights"] = self._class_weights()
        return parameters

    def _class_weights(self) -> tuple[float, ...] | tuple[tuple[float, ...], ...]:
        """Inverse frequencies of the labels, or of each region, in the fold's training cases."""
        manager = self.label_manager
        folder = Path(self.preprocessed_dataset_folder)
        cases, _ = self.do_split()
        dataset = infer_dataset_class(str(folder))(str(folder), cases)
        cache = folder.parent / f"label_voxels_{folder.name}.json"
        voxels = count_labels(dataset, cases, cache)
        voxels.pop(manager.ignore_label, None)
        self.print_to_log_file(f"Voxels of each label in the training cases: {dict(voxels)}")
        if not manager.has_regions:
            return inverse_frequencies([voxels[label] for label in manager.all_labels])
        total = sum(voxels.values())
        inside = [
            sum(voxels[label] for label in np.atleast_1d(region).tolist())
            for region in manager.foreground_regions
        ]
        return tuple(inverse_frequencies([total - n, n]) for n in inside)

    def on_train_epoch_start(self) -> None:
        """Let the loss follow the progress of the training, and log what it changes."""
        super().on_train_epoch_start()
        loss = self.recorded_loss.loss
        history: list[dict[str, float]] = self._history(_TERMS, {})
        loss.start_epoch(self.current_epoch, self.num_epochs, history[-1] if history else {})
        if loss.scheduled:
            weights = ", ".join(f"{name} {w:.6g}" for name, w in loss.weights.items())
            self.print_to_log_file(f"loss weights: {weights}")

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """Log the mean of each term of a compound loss, and its share, at full resolution."""
        super().on_train_epoch_end(train_outputs)
        means = self.recorded_loss.pop_means()
        if len(means) > 1:
            total = sum(abs(value) for value in means.values()) or 1.0
            shares = (f"{n} {v:.4f} ({abs(v) / total:.0%})" for n, v in means.items())
            self.print_to_log_file("loss terms:", ", ".join(shares))
        weights = self.recorded_loss.loss.weights
        unweighted = {name: value / weights.get(name, 1.0) for name, value in means.items()}
        self._log(_TERMS, unweighted, {})
        self._log(_SCALES, self.recorded_loss.scale, 1.0)

    def _log(self, key: str, value: T, missing: T) -> None:
        self._history(key, missing)
        self.logger.log(key, value, self.current_epoch)

    def _history(self, key: str, missing: T) -> list[T]:
        """An entry of nnU-Net's log for every epoch so far, like the means of the terms."""
        history: list[T] = self.logger.get_checkpoint().setdefault(key, [])
        # the checkpoint may be that of another trainer or of an older version
        history += [missing] * (self.current_epoch - len(history))
        return history[: self.current_epoch]


def last_scale(log: dict[str, Any]) -> float:
    """The scale of the loss in the last epoch of nnU-Net's log; 1 where none was logged."""
    scales: list[float] = log.get(_SCALES) or [1.0]
    return scales[-1]


class RecordedLoss(nn.Module):
    """A scaled loss that remembers the mean of its terms over the training steps of an epoch.

    The terms are those of the unscaled loss. Only the outputs at full resolution are recorded, not
    those of deep supervision. The sums stay on the device until they are asked for, so that no
    training step waits for them.

    Args:
        loss: The loss.
        full_resolution: Spatial shape of the outputs to record.
        compiled: Compile the loss.
        scale: Factor of the loss.
    """

    def __init__(
        self,
        loss: SegmentationLoss,
        full_resolution: tuple[int, ...],
        *,
        compiled: bool,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.loss = loss
        self.scale = scale
        self._full_resolution = tuple(full_resolution)
        self._compiled = compiled
        self._terms: Callable[[Tensor, Tensor, tuple[float, ...] | None], dict[str, Tensor]] = (
            torch.compile(loss.terms) if compiled else loss.terms
        )
        self._sums: dict[str, Tensor] = {}
        self._steps = 0

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The scaled loss of a batch."""
        shape = tuple(logits.shape[2:])
        # losses that compile do not use it, and it would recompile them for every resolution
        zoom = None
        if not self._compiled:
            zoom = tuple(f / s for f, s in zip(self._full_resolution, shape, strict=True))
        terms = self._terms(logits, target, zoom)
        if torch.is_grad_enabled() and shape == self._full_resolution:
            for name, value in terms.items():
                self._sums[name] = self._sums.get(name, 0) + value.detach()
            self._steps += 1
        return self.scale * torch.stack(list(terms.values())).sum()

    def pop_means(self) -> dict[str, float]:
        """Mean of each term since the last call, the same on all ranks."""
        if not self._sums:
            return {}
        means = torch.stack(list(self._sums.values())) / self._steps
        if self.loss.ddp:
            means = sum_over_ranks(means) / distributed.get_world_size()
        names, self._sums, self._steps = list(self._sums), {}, 0
        return dict(zip(names, means.tolist(), strict=True))
