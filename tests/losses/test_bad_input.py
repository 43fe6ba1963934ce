"""Wrong arguments and tensors: an error that names the argument and the value."""

from __future__ import annotations

import re

import pytest
import torch

from nnunet_unifiedloss import losses
from tests.helpers.table import TABLE, every_loss

LOGITS = torch.zeros(2, 3, 4, 4)
TARGET = torch.zeros(2, 1, 4, 4)


@every_loss
def test_out_of_range(name):
    for arguments in TABLE[name].out_of_range:
        with pytest.raises(ValueError, match="|".join(arguments)) as caught:
            getattr(losses, name)(**arguments)
        value = next(iter(arguments.values()))
        negative = [item for item in value if item < 0] if isinstance(value, list) else []
        shown = negative[0] if negative else value
        assert str(shown) in str(caught.value), arguments


@every_loss
def test_wrong_types_and_unknown_names(name):
    cls = getattr(losses, name)
    with pytest.raises(TypeError, match="gama"):
        cls(gama=1)
    with pytest.raises(TypeError):
        cls(0.5)
    for option in ("regions", "batch_dice", "ddp"):
        with pytest.raises(TypeError, match=f"{option}.*'yes'"):
            cls(**{option: "yes"})
    for value in ("255", 2.5, True):
        with pytest.raises(TypeError, match=f"ignore_label.*{value}"):
            cls(ignore_label=value)
    for parameter in cls.defaults():
        with pytest.raises(TypeError, match=f"{parameter}.*'0.5'"):
            cls(**{parameter: "0.5"})
        with pytest.raises(TypeError, match=f"{parameter}.*{{}}"):
            cls(**{parameter: {}})


@pytest.mark.parametrize(
    ("logits", "target", "options", "message"),
    [
        (LOGITS[0], TARGET, {}, r"logits: expected shape \(B, C, \*S\).*\(3, 4, 4\)"),
        (LOGITS[:, :, 0], TARGET, {}, r"logits: .*\(2, 3, 4\)"),
        (LOGITS[None, None], TARGET, {}, r"logits: .*\(1, 1, 2, 3, 4, 4\)"),
        (
            LOGITS,
            TARGET[:1],
            {},
            r"target: expected shape \(2, 1, 4, 4\) or \(2, 4, 4\).*\(1, 1, 4, 4\)",
        ),
        (LOGITS, torch.zeros(2, 3, 4, 4), {}, r"target: .*regions=False.*\(2, 3, 4, 4\)"),
        (
            LOGITS,
            TARGET,
            {"regions": True},
            r"target: expected shape \(2, 3, 4, 4\).*\(2, 1, 4, 4\)",
        ),
        (
            LOGITS,
            torch.zeros(2, 3, 4, 4),
            {"regions": True, "ignore_label": 4},
            r"target: expected shape \(2, 4, 4, 4\)",
        ),
        (LOGITS[:, :1], TARGET, {}, r"logits: .*1 channel.*regions=True"),
        (LOGITS[:0], TARGET[:0], {}, r"logits: shape \(0, 3, 4, 4\) holds no voxel"),
        (LOGITS, TARGET + 3, {}, r"target: .*label outside.*3 channels"),
        (LOGITS, TARGET - 1, {}, r"target: .*label outside.*3 channels"),
        (LOGITS, TARGET + 3, {"ignore_label": 4}, r"target: .*label outside.*3 channels"),
    ],
)
def test_shapes_and_labels(logits, target, options, message):
    for name in ("UnifiedFocalLoss", "CrossEntropyLoss", "DiceLoss"):
        with pytest.raises(ValueError, match=message):
            getattr(losses, name)(**options)(logits, target)


@pytest.mark.parametrize(
    ("logits", "target", "message"),
    [
        (LOGITS.long(), TARGET, "logits: .*torch.int64"),
        (LOGITS, TARGET.to(torch.complex64), "target: .*torch.complex64"),
        (LOGITS.numpy(), TARGET, "logits: .*ndarray"),
        (LOGITS, [0, 1], "target: .*list"),
    ],
)
def test_tensor_types(logits, target, message):
    with pytest.raises(TypeError, match=message):
        losses.UnifiedFocalLoss()(logits, target)


def test_tensors_on_two_devices():
    with pytest.raises(ValueError, match=r"target: is on device meta, logits are on cpu"):
        losses.UnifiedFocalLoss()(LOGITS, TARGET.to("meta"))


def test_weights_for_the_wrong_number_of_classes():
    with pytest.raises(ValueError, match=re.escape("alpha: has 2 weights for 3 classes")):
        losses.FocalLoss(alpha=[0.5, 0.5])(LOGITS, TARGET)
