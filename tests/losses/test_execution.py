"""Losses without synchronisation, compiled, and on several ranks."""

from __future__ import annotations

import itertools
import os
import tempfile
import warnings

import pytest
import torch
import torch._dynamo.testing
import torch.multiprocessing as mp
from torch import distributed

from nnunet_unifiedloss import losses
from nnunet_unifiedloss.losses.probabilities import SoftmaxSplit
from tests.helpers.batches import make_batch, options
from tests.helpers.table import TABLE, every_loss, every_mode, parameter_sets

MODES = list(itertools.product([False, True], [False, True]))  # regions, ignore


@every_loss
@every_mode
@pytest.mark.parametrize(("ignore", "batch_dice"), [(False, False), (True, True)])
def test_nothing_synchronises_or_leaves_the_device(name, regions, ignore, batch_dice):
    """Tensors on the meta device hold no values: whatever asked for one would raise."""
    logits, target = make_batch(regions=regions, ignore=ignore, dims=3)
    logits = logits.detach().float().to("meta").requires_grad_()
    for parameters in parameter_sets(name, regions=regions, dims=3):
        loss = getattr(losses, name)(
            **parameters, **options(regions=regions, ignore=ignore, batch_dice=batch_dice)
        )
        value = loss(logits, target.to("meta"))
        (grad,) = torch.autograd.grad(value, logits)
        assert value.device.type == grad.device.type == "meta"


def assert_compiles(name, regions, ignore, backend, device="cpu"):
    logits, target = make_batch(regions=regions, ignore=ignore, dims=3, dtype=torch.float32)
    logits, target = logits.detach().to(device).requires_grad_(), target.to(device)
    loss = getattr(losses, name)(**options(regions=regions, ignore=ignore), **SMALL.get(name, {}))
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(loss, fullgraph=True, backend=backend)
        value = compiled(logits, target)
        (grad,) = torch.autograd.grad(value, logits)
    expected = loss(logits, target)
    (expected_grad,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(
        grad, expected_grad, rtol=1e-4, atol=1e-6 * expected_grad.abs().max().item()
    )


every_compiled_loss = pytest.mark.parametrize(
    "name", [name for name in sorted(TABLE) if getattr(losses, name).compiles]
)
# their graphs grow with these, and so does the time to compile them
SMALL = {"HausdorffERLoss": {"erosions": 2}}


@every_compiled_loss
def test_compiles_as_one_graph(name):
    assert_compiles(name, False, True, "aot_eager")


@pytest.mark.slow
@every_compiled_loss
@pytest.mark.parametrize(("regions", "ignore"), MODES)
def test_compiles_as_one_graph_in_every_mode(name, regions, ignore):
    assert_compiles(name, regions, ignore, "aot_eager")


@every_compiled_loss
@every_mode
def test_deep_supervision_compiles_few_graphs(name, regions):
    """Six resolutions, as in a training: one graph for the first, one for all other shapes.

    The Lovász loss may compile a third one, since it sorts small images only, and PyTorch 2.4 one
    more. torch gives up after eight.
    """
    loss = getattr(losses, name)(regions=regions, **SMALL.get(name, {}))
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(loss.terms, fullgraph=True, backend=counter)
    generator = torch.Generator().manual_seed(0)
    for size in (64, 32, 16, 8, 4, 2):
        shape = (2, 3, size, size, max(size // 2, 2))
        logits = torch.randn(shape, generator=generator).requires_grad_()
        target = torch.rand(shape, generator=generator) < 0.2
        target = target if regions else target.int().argmax(1, keepdim=True).float()
        value = torch.stack(list(compiled(logits, target).values())).sum()
        expected = loss(logits, target)
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
        gradients = [torch.autograd.grad(v, logits)[0] for v in (value, expected)]
        torch.testing.assert_close(
            *gradients, rtol=1e-3, atol=1e-5 * gradients[1].abs().max().item()
        )
    assert counter.frame_count <= 4


@pytest.mark.parametrize("regions", [False, True], ids=["labels", "regions"])
def test_compiled_to_machine_code(regions):
    assert_compiles("UnifiedFocalLoss", regions, True, "inductor")


FUNCTIONS = [
    function
    for function in torch.autograd.Function.__subclasses__()
    if function.__module__.startswith("nnunet_unifiedloss.")
]


def test_few_backward_passes_are_written_by_hand():
    assert {function.__name__ for function in FUNCTIONS} == {"SoftmaxSplit", "_SumOverRanks"}


@pytest.mark.parametrize("ignore", [False, True])
def test_outputs_written_in_place_are_returned_as_views(ignore):
    """PyTorch 2.11 compiles others without their gradient (pytorch/pytorch#180642)."""
    logits, target = make_batch(ignore=ignore)
    label = target.long() % 3
    outputs = SoftmaxSplit.forward(logits.detach(), label, target == 9 if ignore else None)
    assert all(output._version == 0 or output._is_view() for output in outputs)


@pytest.mark.slow
@every_compiled_loss
@pytest.mark.parametrize(("regions", "ignore"), MODES)
def test_every_loss_compiled_to_machine_code(name, regions, ignore):
    assert_compiles(name, regions, ignore, "inductor")


def evaluate(name, regions, ignore, batch_dice, ddp, samples):
    """Value and gradient on some samples of a batch of three, one of which has no foreground."""
    logits, target = make_batch(regions=regions, ignore=ignore, batch=3)
    target[0, : 3 if regions else 1][target[0, : 3 if regions else 1] == 1] = 0
    logits = logits.detach()[samples].requires_grad_()
    arguments = options(regions=regions, ignore=ignore, batch_dice=batch_dice, ddp=ddp)
    value = getattr(losses, name)(**arguments)(logits, target[samples])
    (grad,) = torch.autograd.grad(value, logits)
    return value.item(), grad


PER_RANK = {"LovaszLoss"}  # it sorts the voxels of its own rank

CASES = [
    (name, *mode, batch_dice)
    for name in sorted(TABLE)
    if name not in PER_RANK
    for mode in [(False, True), (True, False)]  # labels with ignored voxels, regions without
    for batch_dice in (False, True)
]


def run_rank(rank, folder, cases):
    """Evaluate the cases on one of two ranks: the first has two of three samples."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    samples = [slice(0, 2), slice(2, 3)][rank]
    results = [evaluate(*case, True, samples) for case in cases]
    torch.save(results, os.path.join(folder, f"{rank}.pt"))
    distributed.destroy_process_group()


def test_two_ranks_give_the_value_and_gradient_of_one():
    """The gradients of the ranks are averaged, as DistributedDataParallel does."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(run_rank, args=(folder, CASES), nprocs=2)
        ranks = [torch.load(os.path.join(folder, f"{rank}.pt")) for rank in range(2)]
    for case, (value0, grad0), (value1, grad1) in zip(CASES, *ranks, strict=True):
        value, grad = evaluate(*case, False, slice(0, 3))
        assert value0 == pytest.approx(value, rel=1e-10), case
        assert value1 == pytest.approx(value, rel=1e-10), case
        averaged = torch.cat([grad0, grad1]) / 2
        torch.testing.assert_close(
            averaged, grad, rtol=1e-8, atol=1e-14, msg=lambda m, c=case: f"{c} {m}"
        )


def run_compiled_rank(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    logits, target = make_batch(ignore=True, batch=2)
    logits, target = logits.detach()[[rank]].requires_grad_(), target[[rank]]
    loss = losses.UnifiedFocalLoss(**options(ignore=True, batch_dice=True, ddp=True))
    results = []
    for function in (loss, torch.compile(loss, backend="aot_eager")):
        value = function(logits, target)
        results.append((value.item(), torch.autograd.grad(value, logits)[0]))
    torch.save(results, os.path.join(folder, f"{rank}.pt"))
    distributed.destroy_process_group()


def test_compiled_on_two_ranks():
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(run_compiled_rank, args=(folder,), nprocs=2)
        for rank in range(2):
            (value, grad), (compiled_value, compiled_grad) = torch.load(
                os.path.join(folder, f"{rank}.pt")
            )
            assert compiled_value == pytest.approx(value, rel=1e-10)
            torch.testing.assert_close(compiled_grad, grad, rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("name", sorted(set(TABLE) - PER_RANK))
def test_ddp_without_a_process_group_is_refused(name):
    logits, target = make_batch()
    loss = getattr(losses, name)(batch_dice=True, ddp=True)
    with pytest.raises(ValueError, match=r"ddp=True.*init_process_group"):
        loss(logits, target)
