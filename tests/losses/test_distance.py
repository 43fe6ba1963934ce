"""Distance transforms, for the CPU and for devices, against SciPy."""

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


def in_voxels(of, to, transform=squared_distance):
    return transform(of, to, (1.0,) * (of.ndim - 3), torch.float32)


# the implementation for devices runs on the CPU as well
either = pytest.mark.parametrize("transform", [squared_distance, distance._with_torch])


@either
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("shape", [(12, 15), (9, 12, 7), (1, 12, 7), (9, 8, 1)])
@pytest.mark.parametrize("anisotropic", [False, True])
@pytest.mark.parametrize("ignore", [False, True])
def test_agrees_with_scipy(transform, dtype, mask, shape, anisotropic, ignore):
    generator = np.random.default_rng(0)
    inside = MASKS[mask](generator, shape)
    counted = generator.random(shape) < 0.7 if ignore else np.ones(shape, bool)
    inside = inside & counted
    outside = ~inside & counted
    size = (0.7, 2.5, 1.3)[: len(shape)] if anisotropic else (1.0,) * len(shape)
    for of, to in ((inside, outside), (outside, inside)):
        expected = np.zeros(shape)
        if to.any():
            expected = ndimage.distance_transform_edt(~to, sampling=size) ** 2 * of
        maps = [torch.from_numpy(m)[None, None, None] for m in (of, to)]
        found = transform(*maps, size, dtype)
        assert found.dtype == dtype
        np.testing.assert_allclose(found[0, 0, 0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(90, 75), (40, 33, 50), (3, 120, 110), (270, 40)])
@pytest.mark.parametrize("threshold", [0.4, 0.5, 0.6, 0.999])
def test_larger_shapes_agree_with_scipy(shape, threshold):
    noise = ndimage.gaussian_filter(np.random.default_rng(0).random(shape), 4)
    to = torch.from_numpy(noise > np.quantile(noise, threshold))
    expected = ndimage.distance_transform_edt(~to.numpy()) ** 2
    found = in_voxels(~to[None, None, None], to[None, None, None])
    np.testing.assert_allclose(found[0, 0, 0], expected, rtol=1e-5)


@pytest.mark.parametrize("length", [127, 128, 129])  # the last one's squares need more than 16 bits
def test_the_longest_distance_of_a_patch_is_exact(length):
    to = torch.zeros(1, 1, 1, length, length, length, dtype=torch.bool)
    to[..., 0, -1, 0] = True
    steps = torch.arange(length, dtype=torch.float64) ** 2
    expected = steps[:, None, None] + steps.flip(0)[:, None] + steps
    found = in_voxels(~to, to)
    torch.testing.assert_close(found[0, 0, 0].double(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("block", ["_LARGEST_BLOCK", "_CACHED"])
@either
def test_large_images_are_processed_in_blocks(monkeypatch, transform, block):
    to = torch.rand(2, 1, 3, 8, 9, 10, generator=torch.Generator().manual_seed(0)) < 0.1
    whole = in_voxels(~to, to, transform)
    monkeypatch.setattr(distance, block, 200)
    torch.testing.assert_close(in_voxels(~to, to, transform), whole)


def measure_in_a_fork(to):
    in_voxels(~to, to)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="there is none")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_worker_does_not_hang():
    to = torch.zeros(1, 1, 1, 40, 40, 40, dtype=torch.bool)
    to[..., 3:9, 5, :] = True
    in_voxels(~to, to)
    worker = multiprocessing.get_context("fork").Process(target=measure_in_a_fork, args=(to,))
    worker.start()
    worker.join(60)
    assert worker.exitcode == 0
