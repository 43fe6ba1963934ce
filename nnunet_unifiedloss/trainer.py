"""The engine behind the trainers in ``trainers/``: it hands nnU-Net a loss from our catalogue.

Everything else, deep supervision and its weights included, stays nnU-Net's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, cast

import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn

from nnunet_unifiedloss.losses import SegmentationLoss
from nnunet_unifiedloss.naming import host_variants, loss_of, parse


class LossTrainer(nnUNetTrainer):
    """nnU-Net's trainer with another loss; subclasses set class attributes only.

    Attributes:
        loss_class: The loss.
        loss_parameters: Its hyperparameters that differ from the default.
        set_learning_rate: nnU-Net's ``initial_lr``, or None to leave it.
        set_epochs: Number of epochs, or None to leave it.
        set_iterations: Training iterations per epoch, or None to leave it.
    """

    loss_class: ClassVar[type[SegmentationLoss]]
    loss_parameters: ClassVar[Mapping[str, Any]] = {}
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

    def _build_loss(self) -> nn.Module:
        """Our loss in place of nnU-Net's, inside nnU-Net's own deep supervision wrapper."""
        loss = self.loss_class(
            **self.loss_parameters,
            regions=self.label_manager.has_regions,
            ignore_label=self.label_manager.ignore_label,
            batch_dice=self.configuration_manager.batch_dice,
            ddp=self.is_ddp,
        ).to(self.device)
        self.recorded_loss = RecordedLoss(
            loss, self.configuration_manager.patch_size, compiled=self._do_i_compile()
        )
        host_loss = super()._build_loss()
        if isinstance(host_loss, DeepSupervisionWrapper):
            host_loss.loss = self.recorded_loss
            return cast(nn.Module, host_loss)
        return self.recorded_loss

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """Log the mean of each term of a compound loss, and its share, at full resolution."""
        super().on_train_epoch_end(train_outputs)
        means = self.recorded_loss.pop_means()
        if len(means) > 1:
            total = sum(abs(value) for value in means.values()) or 1.0
            shares = (f"{n} {v:.4f} ({abs(v) / total:.0%})" for n, v in means.items())
            self.print_to_log_file("loss terms:", ", ".join(shares))


class RecordedLoss(nn.Module):
    """A loss that remembers the mean of its terms over the training steps of an epoch.

    Only the outputs at full resolution are recorded, not those of deep supervision. The sums stay
    on the device until they are asked for, so that no training step waits for them.

    Args:
        loss: The loss.
        full_resolution: Spatial shape of the outputs to record.
        compiled: Compile the loss.
    """

    def __init__(
        self, loss: SegmentationLoss, full_resolution: tuple[int, ...], *, compiled: bool
    ) -> None:
        super().__init__()
        self.loss = loss
        self._full_resolution = tuple(full_resolution)
        self._terms: Callable[[Tensor, Tensor], dict[str, Tensor]] = (
            torch.compile(loss.terms) if compiled else loss.terms
        )
        self._sums: dict[str, Tensor] = {}
        self._steps = 0

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch."""
        terms = self._terms(logits, target)
        if torch.is_grad_enabled() and tuple(logits.shape[2:]) == self._full_resolution:
            for name, value in terms.items():
                self._sums[name] = self._sums.get(name, 0) + value.detach()
            self._steps += 1
        return torch.stack(list(terms.values())).sum()

    def pop_means(self) -> dict[str, float]:
        """Mean of each term since the last call."""
        means = {name: value.item() / self._steps for name, value in self._sums.items()}
        self._sums, self._steps = {}, 0
        return means


def trainer_lookup(module: dict[str, Any]) -> Callable[[str], type[LossTrainer]]:
    """A module's ``__getattr__`` that builds trainers from their names.

    nnU-Net asks every module for the name that it looks for. A module answers for the losses whose
    trainer it defines.

    Args:
        module: The module's ``globals()``.

    Returns:
        A function from a trainer's name to its class; it raises AttributeError for names that the
        module does not answer for, and :class:`~.naming.TrainerNameError` for wrong ones.
    """

    def __getattr__(name: str) -> type[LossTrainer]:  # noqa: N807 (PEP 562)
        loss = loss_of(name)
        parent = module.get(name.partition("_")[0])
        if loss is None or parent is None:
            raise AttributeError(f"module {module['__name__']!r} has no attribute {name!r}")
        module[name] = build_trainer(name, parent)
        trainer: type[LossTrainer] = module[name]
        return trainer

    return __getattr__


def build_trainer(name: str, parent: type[LossTrainer]) -> type[LossTrainer]:
    """The trainer class of a name.

    Args:
        name: A trainer's name, which becomes the ``__name__``.
        parent: The trainer of the same loss with default parameters.

    Raises:
        TrainerNameError: The name breaks the grammar.
    """
    parsed = parse(name)
    bases = (parent,) if parsed.base is None else (parent, host_variants()[parsed.base])
    attributes = {
        "__module__": parent.__module__,
        "__doc__": parent.__doc__,
        "loss_parameters": parsed.parameters,
        "set_learning_rate": parsed.learning_rate,
        "set_epochs": parsed.epochs,
        "set_iterations": parsed.iterations,
    }
    return type(name, bases, attributes)
