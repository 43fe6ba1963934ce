"""The training of a model, as recorded in nnU-Net's folder."""

from __future__ import annotations

import ast
import hashlib
from typing import Any

from nnunet_unifiedloss._support.versions import installed_versions
from nnunet_unifiedloss.export.checkpoints import trainer_class
from nnunet_unifiedloss.export.models import Model
from nnunet_unifiedloss.results.trainings import read_json
from nnunet_unifiedloss.training import names
from nnunet_unifiedloss.training.host_variants import sets_its_own_loss
from nnunet_unifiedloss.training.scales import scale_of

_PACKAGES = ("nnunet-unifiedloss", "nnunetv2", "torch", "dynamic-network-architectures")
# entries of nnU-Net's debug.json about the training; others hold paths and addresses
_SETTINGS = (
    "num_epochs",
    "num_iterations_per_epoch",
    "initial_lr",
    "weight_decay",
    "batch_size",
    "torch_version",
)
_FINGERPRINT = "dataset_fingerprint.json"


def versions() -> dict[str, str]:
    """The versions of the packages that a model depends on, as installed here."""
    return installed_versions(_PACKAGES)


def trained_by(model: Model) -> dict[str, Any]:
    """Trainer, loss with parameters and scale, settings of the training, fingerprint of the data.

    Raises:
        ValueError: The name of the trainer is ours but breaks the grammar.
    """
    folder = model.fold(model.folds[0])
    fingerprint = model.folder / _FINGERPRINT
    digest = hashlib.sha256(fingerprint.read_bytes()).hexdigest() if fingerprint.is_file() else None
    return {
        "trainer": model.trainer,
        **_loss(model.trainer),
        "settings": _settings(folder / "debug.json"),
        "fingerprint": {"file": _FINGERPRINT, "sha256": digest} if digest else None,
    }


def _loss(trainer: str) -> dict[str, Any]:
    loss = names.loss_of(trainer)
    if loss is not None:
        parsed = names.parse(trainer)
        return {
            "loss": loss.__name__,
            "parameters": loss.defaults() | parsed.parameters,
            "scale": parsed.scale or scale_of(loss),
            "paper": loss.paper,
        }
    other: dict[str, Any] = {"parameters": {}, "scale": None, "paper": None}
    try:
        own = sets_its_own_loss(trainer_class(trainer))
    except ValueError:
        return {"loss": f"that of {trainer}", **other}
    name = f"that of {trainer}" if own else "Dice + cross entropy, nnU-Net's default"
    return {"loss": name, **other}


def _settings(path: Any) -> dict[str, Any]:  # noqa: ANN401
    """Some of the trainer's attributes, which nnU-Net writes down when a training starts."""
    if not path.is_file():
        return {}
    debug = read_json(path)
    settings = {}
    for name in _SETTINGS:
        if name in debug:
            try:
                settings[name] = ast.literal_eval(debug[name])  # they are all written as text
            except (ValueError, SyntaxError):
                settings[name] = debug[name]
    return settings
