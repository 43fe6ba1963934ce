"""Near-tubular structures: phantoms, and the real data that the threshold was measured on."""

from __future__ import annotations

import cc3d
import numpy as np
import pytest
from scipy import ndimage

from nnunet_unifiedloss.advise.advice import advise
from nnunet_unifiedloss.advise.measurement import _structure
from nnunet_unifiedloss.advise.shape import LONG, elongated_volume


def ball(radius):
    axes = np.ogrid[(slice(-radius, radius + 1),) * 3]
    return sum(axis**2 for axis in axes) <= radius**2


def helix():
    """A thin tube that winds around an axis."""
    mask = np.zeros((80, 40, 40), dtype=bool)
    t = np.linspace(0, 8 * np.pi, 4000)
    points = np.stack([4 + 72 * t / t[-1], 20 + 13 * np.cos(t), 20 + 13 * np.sin(t)])
    mask[tuple(points.round().astype(int))] = True
    return ndimage.binary_dilation(mask, iterations=1)


def branches():
    """A tree of thin lines with two axes."""
    mask = np.zeros((120, 120), dtype=bool)
    mask[58:61] = mask[:, 30:33] = mask[:, 80:83] = True
    return mask


def plate():
    mask = np.zeros((90, 90, 9), dtype=bool)
    mask[5:85, 5:85, 3:6] = True
    return mask


def short_tube():
    mask = np.zeros((9, 9, 50), dtype=bool)
    mask[2:7, 2:7, 5:45] = True
    return mask


@pytest.mark.parametrize(
    ("make", "elongated"),
    [
        (helix, True),
        (branches, True),
        (plate, False),
        (short_tube, False),
        (lambda: ball(15), False),
        (lambda: ball(15)[15], False),
        (lambda: np.ones((1, 1, 3), bool), False),
    ],
)
def test_elongated_phantoms(make, elongated):
    mask = make()
    components = cc3d.connected_components(mask.astype(np.uint8))
    voxels = np.array([np.count_nonzero(mask)])
    assert elongated_volume(components, voxels) == (voxels[0] if elongated else 0)


def test_only_the_elongated_component_counts():
    mask = np.zeros((100, 100), dtype=bool)
    mask[3:5] = True
    mask[20:60, 20:60] = True
    found = _structure(mask, shape=True)
    assert sorted(found.voxels) == [200, 1600]
    assert found.elongated == 200
    assert _structure(mask, shape=False).elongated is None


@pytest.mark.parametrize("shape", [(37, 41), (40, 40), (15, 16, 17)])
def test_components_are_those_of_scipy(shape):
    """Also for images with two axes, where cc3d 4.1 leaves Boolean components in pieces."""
    generator = np.random.default_rng(0)
    for share in (0.1, 0.2, 0.3, 0.4) * 5:
        mask = generator.random(shape) < share
        labels, _ = ndimage.label(mask, np.ones((3,) * mask.ndim))
        expected = np.bincount(labels.ravel())[1:]
        assert sorted(_structure(mask, shape=False).voxels) == sorted(expected)


def test_the_threshold_on_real_data(test_data, monkeypatch):
    """Vessels are elongated; lesions of the retina and the hippocampus are not."""
    monkeypatch.setenv("nnUNet_raw", str(test_data))
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    there = [n for n in (4, 5, 6) if list(test_data.glob(f"Dataset{n:03d}_*"))]
    shares = {s.name: s.tubular for n in there for s in advise(n).structures}
    vessels = shares.pop("vessel", 1.0)
    assert vessels > 0.95
    assert max(shares.values()) < 0.25
    assert LONG == 20


@pytest.mark.parametrize("width", [(1, 2), (2, 2), (2, 3), (3, 3), (4, 4)])
def test_tubes_of_any_width(width):
    """Also those with an even number of voxels across, which scikit-image's skeleton loses."""
    mask = np.pad(np.ones((200, *width), dtype=np.uint8), 2)
    assert elongated_volume(mask, np.array([mask.sum()])) == mask.sum()
