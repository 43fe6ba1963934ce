"""Distance transforms against SciPy, on both ways to compute them."""

from __future__ import annotations

import multiprocessing

import numpy as np
import pytest
import torch
from scipy import ndimage

from nnunet_unifiedloss.losses import distance
from nnunet_unifiedloss.losses.distance import squared_distance

MASKS = {
    "noise": lambda r, s: r.random(s) < 0.3,
    "one voxel": lambda r, s: np.arange(np.prod(s)).reshape(s) == 7,
    "all but one": lambda r, s: np.arange(np.prod(s)).reshape(s) != 7,
    "empty": lambda r, s: np.zeros(s, bool),
    "full": lambda r, s: np.ones(s, bool),
    "box": lambda r, s: np.indices(s).max(0) < 4,
}


def on_a_device(of, to, spacing, dtype, *, both=False):
    """The way of devices, which runs on the CPU as well."""
    return distance._on_a_device(of, to, spacing or (1.0,) * (of.ndim - 3), dtype, both)


@pytest.mark.parametrize("way", [squared_distance, on_a_device])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("shape", [(12, 15), (9, 12, 7), (1, 12, 7), (9, 8, 1)])
@pytest.mark.parametrize("anisotropic", [False, True])
@pytest.mark.parametrize("ignore", [False, True])
def test_agrees_with_scipy(way, dtype, mask, shape, anisotropic, ignore):
    generator = np.random.default_rng(0)
    inside = MASKS[mask](generator, shape)
    counting = generator.random(shape) < 0.7 if ignore else np.ones(shape, bool)
    inside = inside & counting
    outside = ~inside & counting
    spacing = (0.7, 2.5, 1.3)[: len(shape)] if anisotropic else None
    both = np.zeros(shape)
    for of, to in ((inside, outside), (outside, inside)):
        expected = np.zeros(shape)
        if to.any():
            expected = ndimage.distance_transform_edt(~to, sampling=spacing) ** 2 * of
        maps = [torch.from_numpy(m)[None, None, None] for m in (of, to)]
        found = way(*maps, spacing, dtype)
        assert found.dtype == dtype
        np.testing.assert_allclose(found[0, 0, 0], expected, rtol=1e-5, atol=1e-6)
        both += expected
    found = way(*maps, spacing, dtype, both=True)
    np.testing.assert_allclose(found[0, 0, 0], both, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(90, 75), (40, 33, 50), (3, 120, 110), (270, 40)])
@pytest.mark.parametrize("threshold", [0.4, 0.5, 0.6, 0.999])
def test_larger_shapes_agree_with_scipy(shape, threshold):
    noise = ndimage.gaussian_filter(np.random.default_rng(0).random(shape), 4)
    to = torch.from_numpy(noise > np.quantile(noise, threshold))
    expected = ndimage.distance_transform_edt(~to.numpy()) ** 2
    found = squared_distance(~to[None, None, None], to[None, None, None], None, torch.float32)
    np.testing.assert_allclose(found[0, 0, 0], expected, rtol=1e-5)


@pytest.mark.parametrize("length", [127, 128, 129])  # the last one's squares need more than 16 bits
def test_the_longest_way_through_a_patch_is_exact(length):
    to = torch.zeros(1, 1, 1, length, length, length, dtype=torch.bool)
    to[..., 0, -1, 0] = True
    steps = torch.arange(length, dtype=torch.float64) ** 2
    expected = steps[:, None, None] + steps.flip(0)[:, None] + steps
    found = squared_distance(~to, to, None, torch.float32)
    torch.testing.assert_close(found[0, 0, 0].double(), expected, rtol=0, atol=0)


def test_large_images_are_worked_on_in_blocks(monkeypatch):
    to = torch.rand(2, 1, 3, 8, 9, 10, generator=torch.Generator().manual_seed(0)) < 0.1
    for way, block in ((on_a_device, "_LARGEST_BLOCK"), (squared_distance, "_CACHED")):
        whole = way(~to, to, None, torch.float64)
        with monkeypatch.context() as context:
            context.setattr(distance, block, 200)
            torch.testing.assert_close(way(~to, to, None, torch.float64), whole)


def measure_in_a_fork(to):
    squared_distance(~to, to, None, torch.float32)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="there is none")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_worker_does_not_wait_for_ever():
    to = torch.zeros(1, 1, 1, 40, 40, 40, dtype=torch.bool)
    to[..., 3:9, 5, :] = True
    squared_distance(~to, to, None, torch.float32)
    worker = multiprocessing.get_context("fork").Process(target=measure_in_a_fork, args=(to,))
    worker.start()
    worker.join(60)
    assert worker.exitcode == 0
