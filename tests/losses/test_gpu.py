"""On a GPU: the numbers of the CPU, without waiting for the device, in half precision, compiled."""

from __future__ import annotations

import json
from contextlib import contextmanager

import pytest
import torch

from nnunet_unifiedloss import losses
from nnunet_unifiedloss.losses.distance import squared_distance
from tests.helpers.batches import make_batch, options
from tests.helpers.nnunet_workspace import Workspace
from tests.helpers.table import every_loss, every_mode
from tests.losses.test_execution import MODES, assert_compiles, every_compiled_loss

pytestmark = pytest.mark.skipif("not torch.cuda.is_available()", reason="there is no GPU")

either_ignore = pytest.mark.parametrize("ignore", [False, True], ids=["all", "ignore"])


@contextmanager
def nothing_waits():
    """Whatever makes the host wait for the device raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def evaluate(loss, logits, target):
    logits = logits.detach().requires_grad_()
    value = loss(logits, target)
    return value.detach(), torch.autograd.grad(value, logits)[0]


@every_loss
@every_mode
@either_ignore
@pytest.mark.parametrize("dims", [2, 3])
def test_the_numbers_of_the_cpu_without_waiting(name, regions, ignore, dims):
    logits, target = make_batch(regions=regions, ignore=ignore, dims=dims)
    loss = getattr(losses, name)(**options(regions=regions, ignore=ignore))
    expected, expected_grad = evaluate(loss, logits, target)
    on_gpu = logits.float().cuda(), target.cuda()
    with nothing_waits():
        value, grad = evaluate(loss, *on_gpu)
    assert value.is_cuda
    assert grad.is_cuda
    torch.testing.assert_close(value.cpu().double(), expected, rtol=1e-5, atol=1e-7)
    scale = expected_grad.abs().max().item()
    torch.testing.assert_close(grad.cpu().double(), expected_grad, rtol=1e-4, atol=1e-5 * scale)


@every_loss
@every_mode
@either_ignore
def test_half_precision_under_autocast(name, regions, ignore):
    logits, target = make_batch(regions=regions, ignore=ignore, dims=3, dtype=torch.float16)
    loss = getattr(losses, name)(**options(regions=regions, ignore=ignore))
    with torch.autocast("cuda"):
        value, grad = evaluate(loss, 20 * logits.cuda(), target.cuda())
    assert value.dtype == torch.float32
    assert grad.dtype == torch.float16
    assert value.isfinite()
    assert grad.isfinite().all()


@pytest.mark.parametrize(("regions", "ignore"), MODES)
def test_compiled_for_the_gpu(regions, ignore):
    assert_compiles("UnifiedFocalLoss", regions, ignore, "inductor", device="cuda")


@pytest.mark.slow
@every_compiled_loss
@pytest.mark.parametrize(("regions", "ignore"), MODES)
def test_every_loss_compiled_for_the_gpu(name, regions, ignore):
    assert_compiles(name, regions, ignore, "inductor", device="cuda")


@pytest.mark.parametrize("size", [(1.0, 1.0, 1.0), (3.0, 0.7, 0.7)], ids=["voxels", "mm"])
def test_distances_in_a_patch(size):
    to = torch.rand(2, 1, 3, 40, 64, 56, generator=torch.Generator().manual_seed(0)) < 0.001
    expected = squared_distance(~to, to, size, torch.float64, both=True)
    on_gpu = to.cuda()
    with nothing_waits():
        found = squared_distance(~on_gpu, on_gpu, size, torch.float32, both=True)
    torch.testing.assert_close(found.cpu().double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["LovaszLoss", "TopKLoss", "UnifiedFocalLoss"])
@every_mode
@pytest.mark.parametrize("compiled", [False, True], ids=["operators", "compiled"])
def test_many_voxels(name, regions, compiled):
    """Sums of a million voxels, and errors that are sorted by their leading digits."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 4, 64, 64, 128, generator=generator, dtype=torch.float64)
    target = torch.rand(logits.shape, generator=generator)
    target = target < 0.01 if regions else target.argmax(1, keepdim=True)
    loss = getattr(losses, name)(regions=regions)
    expected, expected_grad = evaluate(loss, logits, target)
    torch._dynamo.reset()
    on_gpu = torch.compile(loss, fullgraph=True) if compiled else loss
    value, grad = evaluate(on_gpu, logits.float().cuda(), target.cuda())
    torch.testing.assert_close(value.cpu().double(), expected, rtol=1e-5, atol=1e-7)
    # the few errors that rounding moves to another level get the increment of that level
    assert (grad.cpu().double() - expected_grad).norm() < 1e-3 * expected_grad.norm()


@pytest.mark.parametrize("scenario", ["plain", "regions-ignore"])
@pytest.mark.parametrize("loss", ["UnifiedFocal", "DiceHausdorff"])  # compiled by nnU-Net, and not
def test_nnunet_trains(test_data, tmp_path, scenario, loss):
    workspace = Workspace(tmp_path)
    workspace.prepare(test_data, scenario, ["3d_fullres"])
    trainer = f"nnUNetTrainer{loss}_2epochs_10iters"
    workspace.train(trainer, "3d_fullres", "-device", "cuda")
    fold = workspace.fold(trainer, "3d_fullres")
    assert json.loads((fold / "validation" / "summary.json").read_text())["metric_per_case"]
    (log,) = fold.glob("training_log*.txt")
    losses = [float(line.split()[-1]) for line in log.read_text().splitlines() if "_loss" in line]
    assert len(losses) == 4
    assert torch.tensor(losses).isfinite().all()
