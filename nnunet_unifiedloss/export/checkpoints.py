"""Checkpoints, reduced to the part that inference needs, which loads without running code."""

from __future__ import annotations

import io
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_unifiedloss.export.archive import ArchiveError, check_expansion
from nnunet_unifiedloss.training.install import host_look_up

TRAINING_STATE = ("optimizer_state", "grad_scaler_state", "logging", "current_epoch", "_best_ema")
_FOR_INFERENCE = ("network_weights", "init_args", "inference_allowed_mirroring_axes")
# lists of the training images, with paths of the machine that it was trained on
_FILE_LISTS = ("dataset", "training", "test")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint that was trained here, as nnU-Net itself reads it.

    Raises:
        ValueError: It is damaged, or is no checkpoint of nnU-Net.
    """
    try:
        # nnU-Net keeps NumPy's numbers in it, which torch takes for code; its own results are
        # trusted here as they are by every command of nnU-Net
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # a file that is cut short or damaged can raise anything
        raise ValueError(
            f"{path}: not readable, perhaps cut short ({error}); remedy: finish the training with "
            "nnUNetv2_train … --c, or choose another checkpoint with -chk"
        ) from error
    arguments = checkpoint.get("init_args") if isinstance(checkpoint, dict) else None
    known = isinstance(arguments, dict) and "configuration" in arguments
    if not known or not {"network_weights", "trainer_name"} <= checkpoint.keys():
        raise ValueError(f"{path}: not a checkpoint of nnU-Net v2")
    return checkpoint


def slim(
    checkpoint: dict[str, Any], trainer_name: str, *, with_training_state: bool = False
) -> dict[str, Any]:
    """Reduce a checkpoint to the part that is exported.

    Args:
        checkpoint: A checkpoint of nnU-Net.
        trainer_name: The trainer that nnU-Net is to build the network with.
        with_training_state: Keep what a training needs to go on.

    Returns:
        A checkpoint of tensors and plain Python; ``trained_by`` names the original trainer.

    Raises:
        ValueError: It holds something that has no plain form.
    """
    keys = _FOR_INFERENCE + (TRAINING_STATE if with_training_state else ())
    kept = {key: plain(checkpoint[key], key) for key in keys if key in checkpoint}
    kept["init_args"]["dataset_json"] = without_file_lists(
        kept["init_args"].get("dataset_json", {})
    )
    kept["trainer_name"] = trainer_name
    kept["trained_by"] = checkpoint.get("trained_by", checkpoint["trainer_name"])
    return kept


def without_file_lists(dataset: dict[str, Any]) -> dict[str, Any]:
    """A ``dataset.json`` without the lists of its images, which no prediction needs."""
    return {key: value for key, value in dataset.items() if key not in _FILE_LISTS}


def plain(value: Any, name: str) -> Any:  # noqa: ANN401
    """A value in tensors and plain Python, which torch loads without running code.

    Args:
        value: A value of a checkpoint.
        name: Name for messages.

    Raises:
        ValueError: There is no plain form.

    Example:
        >>> plain({"losses": [np.float32(0.5)], "device": torch.device("cpu")}, "logging")
        {'losses': [0.5], 'device': 'cpu'}
    """
    if value is None or isinstance(value, torch.Tensor):
        return value
    if isinstance(value, (np.generic, np.ndarray)) and value.dtype != object:
        return value.tolist()
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, dict):
        return {plain(key, name): plain(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [plain(item, name) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, (torch.device, Path)):
        return str(value)
    raise ValueError(
        f"{name} holds a {type(value).__module__}.{type(value).__qualname__}, which "
        "does not load without running code; remedy: leave it out of the trainer's checkpoint"
    )


def to_bytes(checkpoint: dict[str, Any]) -> bytes:
    """A checkpoint as a file."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    return buffer.getvalue()


def load_safely(content: bytes, name: str) -> dict[str, Any]:
    """Read an exported checkpoint without running code from it.

    Args:
        content: The file.
        name: Name for messages.

    Raises:
        ArchiveError: It holds pickled code, is damaged, or is no checkpoint of nnU-Net.
    """
    # checked first: only the zip format is read, never torch's older ones
    check_expansion(content, name)
    try:
        checkpoint = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        called = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"call {called[1]}" if called else "run code that torch does not know"
        raise ArchiveError(f"{name}: not loaded, as it would {what}") from error
    except Exception as error:  # damaged content can raise anything
        raise ArchiveError(f"{name}: damaged ({error})") from error
    weights = checkpoint.get("network_weights") if isinstance(checkpoint, dict) else None
    if not isinstance(weights, dict) or not isinstance(checkpoint.get("trainer_name"), str):
        raise ArchiveError(f"{name}: not a checkpoint of nnU-Net v2")
    return dict(checkpoint)


def trainer_class(name: str) -> Any:  # noqa: ANN401 (nnU-Net has no types)
    """The trainer that nnU-Net finds under a name.

    Raises:
        ValueError: It finds none.
    """
    found = host_look_up(name)
    if found is None:
        raise ValueError(
            f"nnU-Net does not find the trainer {name} here; remedy: install what brings it, or "
            "set nnUNet_extTrainer"
        )
    return found


def stock_trainer(trainer: Any) -> Any:  # noqa: ANN401 (nnU-Net has no types)
    """The trainer with which an unmodified nnU-Net builds the same network.

    Args:
        trainer: The trainer of the checkpoint.

    Returns:
        ``nnUNetTrainer`` where the method that builds the network is its own; otherwise the trainer
        of nnU-Net that the method comes from; otherwise the trainer itself.
    """
    ancestors = [each for each in trainer.__mro__ if each.__module__.startswith("nnunetv2.")]
    build = trainer.build_network_architecture
    same = [each for each in ancestors if each.build_network_architecture is build]
    return same[-1] if same else trainer
