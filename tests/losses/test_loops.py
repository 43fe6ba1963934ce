"""The compiled loops compute what whole maps do, which other tests hold against the definitions."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from nnunet_unifiedloss import losses
from nnunet_unifiedloss.losses import compiled, devices
from nnunet_unifiedloss.losses.region.lovasz import loss as lovasz
from nnunet_unifiedloss.losses.softmax import loops, maps
from tests.helpers.batches import make_batch, options
from tests.helpers.table import every_loss, every_mode

SMALL_SHAPES = [(2, 4, 9, 8, 7), (3, 2, 6, 11), (1, 5, 4, 3, 3), (1, 2, 1, 5, 6), (2, 3, 1, 1)]


@pytest.fixture(autouse=True)
def one_thread():
    """With several the softmax is torch's."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def evaluate(loss, logits, target):
    logits = logits.detach().requires_grad_()
    value = loss(logits, target)
    return value.detach(), torch.autograd.grad(value, logits)[0]


@every_loss
@every_mode
@pytest.mark.parametrize("ignore", [False, True], ids=["all", "ignore"])
def test_every_loss_is_the_same_without_numba(monkeypatch, name, regions, ignore):
    logits, target = make_batch(regions=regions, ignore=ignore, dims=3, dtype=torch.float32)
    loss = getattr(losses, name)(**options(regions=regions, ignore=ignore))
    assert devices.has_loops(logits)
    value, grad = evaluate(loss, logits, target)
    monkeypatch.setattr(devices, "_numba_works", lambda: False)
    assert not devices.has_loops(logits)
    expected, expected_grad = evaluate(loss, logits, target)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7)
    scale = expected_grad.abs().max().item()
    torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-5 * scale)


def random_batch(shape, *, regions, ignore):
    """Logits of a shape, and labels or regions a fifth of whose voxels is ignored."""
    generator = torch.Generator().manual_seed(sum(shape))
    batch, channels, *space = shape
    logits = 3 * torch.randn(shape, generator=generator)
    ignored = torch.rand(batch, 1, *space, generator=generator) < 0.2
    if regions:
        target = (torch.rand(shape, generator=generator) < 0.3).float()
        return logits, torch.cat([target, ignored.float()], 1) if ignore else target
    target = torch.randint(channels, ignored.shape, generator=generator).float()
    return logits, target.masked_fill(ignored, channels) if ignore else target


@pytest.mark.parametrize("shape", SMALL_SHAPES, ids=str)
@pytest.mark.parametrize("window", [3, 5, 9])
@pytest.mark.parametrize("ignore", [False, True], ids=["all", "ignore"])
@every_mode
def test_planes_agree_with_maps_in_double_precision(shape, window, regions, ignore):
    """Also where the window is larger than the image."""
    logits, target = random_batch(shape, regions=regions, ignore=ignore)
    loss = losses.StructuralSimilarityLoss(
        window=window, regions=regions, ignore_label=shape[1] if ignore else None
    )
    value, grad = evaluate(loss, logits, target)
    expected, expected_grad = evaluate(loss, logits.double(), target)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    scale = expected_grad.abs().max().item()
    torch.testing.assert_close(grad.double(), expected_grad, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("channels", [2, 5, 255, 256, 300])
@pytest.mark.parametrize("ignore", [False, True], ids=["all", "ignore"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_softmax_is_the_same(channels, ignore, dtype):
    logits, target = random_batch((2, channels, 7, 5, 3), regions=False, ignore=ignore)
    logits, ignored = logits.to(dtype), (target == channels) if ignore else None
    label = target.long() if ignored is None else target.long().masked_fill(ignored, 0)
    found, expected = (module.split(logits, label, ignored) for module in (loops, maps))
    for values, truth in zip(found[:4], maps.split(logits.double(), label, ignored), strict=False):
        torch.testing.assert_close(values.double(), truth, rtol=3e-5, atol=1e-30)
    slope = torch.rand_like(found[0])
    of_classes = torch.randn(2, channels, 1, 1, 1).expand(found[3].shape)
    for grad in (None, of_classes, torch.randn_like(found[3])):
        slopes = [
            module.slopes(others, truth, error, p_t, slope, grad)
            for module, (_, error, p_t, others, truth) in ((loops, found), (maps, expected))
        ]
        torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-6)


@compiled.compiled
def compute_each(function, values):
    for i in range(values.size):
        values[i] = function(values[i])


@pytest.mark.parametrize(
    ("function", "reference", "values"),
    [
        (compiled.power_of_two, np.exp2, np.linspace(-160, 0, 400_001)),
        (compiled.logarithm, np.log, 1 + np.geomspace(1e-7, 1e4, 400_001)),
    ],
    ids=["power of two", "logarithm"],
)
def test_elementary_functions(function, reference, values):
    """Within 1.5 units of the last digit; of subnormal floats some environments make 0."""
    found = values.astype(np.float32)
    expected = reference(found.astype(np.float64))
    compute_each(function, found)
    digit = np.maximum(np.spacing(expected.astype(np.float32)), np.finfo(np.float32).tiny)
    assert (abs(found - expected) <= 1.5 * digit).all()


def test_powers_of_two_at_the_ends():
    values = np.array([0, -1, -126, -151, -np.inf, np.nan], np.float32)
    compute_each(compiled.power_of_two, values)
    np.testing.assert_array_equal(values, [1, 0.5, 2**-126, 0, 0, np.nan])


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (0, 1, 4, 3, 2), (4, 3, 2, 1, 0)], ids=str)
def test_any_order_in_memory(order):
    """As that of channels last."""
    logits, target = random_batch((2, 3, 6, 5, 4), regions=False, ignore=False)
    back = torch.argsort(torch.tensor(order)).tolist()
    reordered = logits.permute(order).contiguous().permute(back)
    for name in ("UnifiedFocalLoss", "StructuralSimilarityLoss"):
        loss = getattr(losses, name)()
        for found, expected in zip(
            evaluate(loss, reordered, target), evaluate(loss, logits, target), strict=True
        ):
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("label", [-1, 3, 256, 259])
def test_a_wrong_label_is_refused(label):
    """Also one that would be right in a byte."""
    logits, target = random_batch((2, 3, 6, 5, 4), regions=False, ignore=False)
    target[1, 0, 2, 3, 1] = label
    with pytest.raises(ValueError, match=f"target: .*{label}.*labels must be 0 to 2"):
        losses.DiceLoss()(logits, target)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["DiceCrossEntropyLoss", "StructuralSimilarityLoss"])
def test_what_is_no_number_gives_the_same_as_in_maps(monkeypatch, name, value):
    logits, target = random_batch((1, 3, 6, 5, 4), regions=False, ignore=False)
    logits[0, 1, 2, 3, 1], target[0, 0, 2, 3, 1] = value, 0
    loss = getattr(losses, name)()
    found, _ = evaluate(loss, logits, target)
    monkeypatch.setattr(devices, "_numba_works", lambda: False)
    expected, _ = evaluate(loss, logits, target)
    torch.testing.assert_close(found, expected, equal_nan=True)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ["DiceLoss", "StructuralSimilarityLoss"])
def test_with_several_threads_and_in_inference_mode(threads, name):
    logits, target = random_batch((2, 3, 6, 5, 4), regions=False, ignore=False)
    loss = getattr(losses, name)()
    expected = loss(logits.double(), target).item()
    torch.set_num_threads(threads)
    with torch.inference_mode():
        assert loss(logits, target).item() == pytest.approx(expected, rel=1e-5)


def test_another_number_of_threads_on_the_way_back():
    """As in the threads of autograd: the way back follows the way there."""
    logits, target = random_batch((2, 3, 6, 5, 4), regions=False, ignore=True)
    loss = losses.UnifiedFocalLoss(ignore_label=3)
    _, expected = evaluate(loss, logits, target)
    for there, back in ((1, 2), (2, 1)):
        torch.set_num_threads(there)
        value = loss(logits.requires_grad_(), target)
        torch.set_num_threads(back)
        torch.testing.assert_close(torch.autograd.grad(value, logits)[0], expected)


@pytest.mark.parametrize("channels", [2, 3])
@pytest.mark.parametrize("name", ["StructuralSimilarityLoss", "LovaszLoss"])
@pytest.mark.parametrize("in_order", [0, 1000], ids=["levels", "order"])
def test_the_way_back_taken_twice(monkeypatch, name, channels, in_order):
    """They use memory again that they do not need any more."""
    monkeypatch.setattr(lovasz, "SORTED", in_order)
    logits, target = random_batch((2, channels, 6, 5, 4), regions=False, ignore=False)
    value = getattr(losses, name)()(logits.requires_grad_(), target)
    (first,) = torch.autograd.grad(value, logits, retain_graph=True)
    expected = first.clone()
    (second,) = torch.autograd.grad(value, logits)
    torch.testing.assert_close(first, expected, rtol=0, atol=0)
    torch.testing.assert_close(second, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["DiceLoss", "StructuralSimilarityLoss"])
def test_tensors_without_numbers_and_other_default_devices(name):
    logits, target = random_batch((2, 3, 6, 5, 4), regions=False, ignore=False)
    loss = getattr(losses, name)()
    expected = loss(logits, target)
    with torch.device("meta"):
        torch.testing.assert_close(loss(logits, target), expected)
    with FakeTensorMode() as mode:
        assert loss(mode.from_tensor(logits), mode.from_tensor(target)).shape == ()


def test_a_numba_that_cannot_be_imported(tmp_path):
    """As where NumPy is too new for it: a warning, and torch's operators."""
    (tmp_path / "numba.py").write_text("raise ImportError('Numba needs NumPy 2.4 or less')")
    source = """
import torch, warnings
from nnunet_unifiedloss import losses
with warnings.catch_warnings(record=True) as found:
    warnings.simplefilter("always")
    for _ in range(2):
        value = losses.DiceLoss()(torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 4, 4))
print(round(value.item(), 2), [str(w.message) for w in found if "numba" in str(w.message)])
"""
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", source], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Numba needs NumPy 2.4 or less") == 1
