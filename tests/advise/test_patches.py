"""The patches: the same shares as with nnU-Net's own data loader."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader

from nnunet_unifiedloss.advise import patches
from nnunet_unifiedloss.advise.patches import oversampled_share, patch_shape, patches_with


def loader(patch, *, batch=12, initial=None, ignore=False):
    """nnU-Net's data loader without data, for two labels."""
    labels = SimpleNamespace(all_labels=[0, 1, 2], has_ignore_label=ignore)
    data = SimpleNamespace(identifiers=["case"])
    return nnUNetDataLoader(data, batch, initial or patch, patch, labels, 0.33)


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 6, 7, 9, 12, 13, 49])
def test_the_share_of_patches_around_foreground(batch):
    its = loader((8, 8, 8), batch=batch)
    assert oversampled_share(batch) == np.mean([its.get_do_oversample(j) for j in range(batch)])


def phantom():
    labels = np.zeros((30, 40, 50), dtype=int)
    labels[2:5, 3:9, 4:9] = 1
    labels[22:24, 30:34, 40:45] = 2
    return labels


def shares_of_nnunet(labels, patch, initial, ignore, count=2000):
    """The shares of patches with labels 1 and 2, as the network sees them."""
    its = loader(patch, initial=initial, ignore=ignore)
    locations = {label: np.argwhere(labels[None] == label) for label in (1, 2)}
    if ignore:
        locations[(-1, 0, 1, 2)] = np.argwhere(labels[None] != 3)
    shares = []
    size = np.array((1,) * (3 - len(patch)) + tuple(patch))
    margin = (np.array(its.patch_size) - size) // 2
    for forced in (False, True):
        hits = np.zeros(2)
        for _ in range(count):
            low = np.array(its.get_bbox(labels.shape, forced, locations)[0]) + margin
            box = tuple(map(slice, np.maximum(low, 0), np.maximum(low + size, 0)))
            hits += [(labels[box] == label).any() for label in (1, 2)]
        shares.append(hits / count)
    return np.array(shares).T


@pytest.mark.parametrize(
    ("patch", "initial", "ignore"),
    [
        ((12, 16, 20), None, False),
        ((12, 16, 20), (16, 20, 26), False),
        ((40, 16, 20), None, False),  # larger than the image
        ((16, 20), None, False),
        ((12, 16, 20), None, True),
    ],
)
def test_shares_are_those_of_nnunets_loader(monkeypatch, patch, initial, ignore):
    monkeypatch.setattr(patches, "SAMPLES", 2000)
    np.random.seed(0)
    labels = phantom()
    if ignore:
        labels[:, :20][labels[:, :20] == 0] = 3
    masks = {str(label): labels == label for label in (1, 2)}
    size = patch_shape(patch, (1.0,) * len(patch), (1.0, 1.0, 1.0))
    annotated = labels != 3 if ignore else None
    found = patches_with(masks, annotated, size, np.random.default_rng(0))
    expected = shares_of_nnunet(labels, patch, initial, ignore)
    assert np.array([found["1"], found["2"]]) == pytest.approx(expected, abs=0.06)


def test_a_patch_in_voxels_of_the_image():
    assert patch_shape((64, 64, 64), (2.0, 1.0, 1.0), (4.0, 0.5, 1.0)) == (32, 128, 64)
    assert patch_shape((1, 2), (0.1, 0.1), (3.0, 1.0, 1.0)) == (1, 1, 1)


def test_a_case_without_structures():
    assert patches_with({}, None, (4, 4, 4), np.random.default_rng(0)) == {}
