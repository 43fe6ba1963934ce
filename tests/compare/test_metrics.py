"""Surface distances and lesions against brute force, other libraries and exact shapes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_unifiedloss.compare.metrics import (
    METRICS,
    Structure,
    counts_to_metrics,
    structure_metrics,
)
from tests.helpers.results_folder import ball


def measure(reference, prediction, spacing, tolerance=1.0, ignored=None):
    structures = (Structure(mask, spacing, ignored) for mask in (reference, prediction))
    return structure_metrics(*structures, tolerance)


def surface_by_loops(mask, ignored):
    """Voxels of the mask with a face neighbour outside of it, one after the other."""
    points = []
    for voxel in itertools.product(*map(range, mask.shape)):
        if not mask[voxel] or ignored[voxel]:
            continue
        for axis, step in itertools.product(range(mask.ndim), (-1, 1)):
            neighbour = list(voxel)
            neighbour[axis] += step
            beyond = not 0 <= neighbour[axis] < mask.shape[axis]
            if beyond or not (mask[tuple(neighbour)] or ignored[tuple(neighbour)]):
                points.append(voxel)
                break
    return np.array(points, dtype=float)


def distances_by_brute_force(reference, prediction, spacing, tolerance, ignored):
    surfaces = [surface_by_loops(mask, ignored) * spacing for mask in (reference, prediction)]
    pairwise = np.linalg.norm(surfaces[0][:, None] - surfaces[1][None], axis=-1)
    there, back = pairwise.min(axis=1), pairwise.min(axis=0)
    total = len(there) + len(back)
    return {
        "NSD": (np.sum(there <= tolerance) + np.sum(back <= tolerance)) / total,
        "HD95": max(np.percentile(there, 95), np.percentile(back, 95)),
        "ASD": (there.sum() + back.sum()) / total,
    }


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("with_ignored", [False, True])
@pytest.mark.parametrize("shape", [(9, 11), (7, 9, 8)])
def test_distances_agree_with_brute_force(shape, with_ignored, seed):
    generator = np.random.default_rng((seed, len(shape)))
    reference, prediction = (
        ball(shape, generator.uniform(2, 6, len(shape)), generator.uniform(1.5, 3.5))
        | (generator.random(shape) < 0.03)
        for _ in range(2)
    )
    ignored = generator.random(shape) < (0.2 if with_ignored else 0)
    spacing = generator.uniform(0.5, 3, len(shape))
    measured = measure(reference, prediction, spacing, 1.7, ignored)
    expected = distances_by_brute_force(reference, prediction, spacing, 1.7, ignored)
    assert {name: measured[name] for name in expected} == pytest.approx(expected, rel=1e-12)


def test_concentric_spheres_are_as_far_apart_as_their_radii():
    spacing = (2.0, 1.0, 0.5)
    shape = (40, 80, 160)
    centre = (19.5, 39.5, 79.5)
    inner, outer = (ball(shape, centre, radius, spacing) for radius in (20, 30))
    measured = measure(inner, outer, spacing, tolerance=5)
    # surfaces lie on voxels, so they can be off by a step
    assert measured["ASD"] == pytest.approx(10, abs=0.5)
    assert measured["HD95"] == pytest.approx(10, abs=1)
    assert measured["NSD"] == 0
    assert measure(inner, outer, spacing, tolerance=12)["NSD"] == 1


@pytest.mark.parametrize("axis", range(3))
def test_a_shifted_box_is_off_by_its_shift(axis):
    spacing = (3.0, 1.0, 0.5)
    box = np.zeros((20, 20, 20), dtype=bool)
    box[5:10, 5:10, 5:10] = True
    measured = measure(box, np.roll(box, 2, axis), spacing, tolerance=0)
    # the farthest faces are two steps away and hold more than a twentieth of the surface
    assert measured["HD95"] == pytest.approx(2 * spacing[axis])
    # of the 98 surface voxels those of the frame that both boxes share have distance 0
    shared = surface_by_loops(box, np.zeros_like(box))
    moved = {tuple(voxel) for voxel in shared + 2 * np.eye(3)[axis]}
    same = sum(tuple(voxel) in moved for voxel in shared)
    assert measured["NSD"] == pytest.approx(same / len(shared))


def test_a_tolerance_of_one_step_takes_a_shift_of_one_step():
    box = np.zeros((12, 12), dtype=bool)
    box[3:8, 3:8] = True
    for spacing in ((0.1, 1.0), (0.3, 1.0), (0.7, 1.0)):
        assert measure(box, np.roll(box, 1, 0), spacing, tolerance=spacing[0])["NSD"] == 1


@pytest.mark.parametrize("seed", range(4))
def test_lesions_agree_with_simpleitk(seed):
    generator = np.random.default_rng(seed)
    reference, prediction = (generator.random((12, 14, 16)) < 0.08 for _ in range(2))
    measured = measure(reference, prediction, (1, 1, 1))

    def components(mask):
        image = sitk.GetImageFromArray(mask.astype(np.uint8))
        return sitk.GetArrayFromImage(sitk.ConnectedComponent(image, True))

    def share_found(lesions, mask):
        numbers = range(1, lesions.max() + 1)
        return np.mean([mask[lesions == number].any() for number in numbers])

    sensitivity = share_found(components(reference), prediction)
    precision = share_found(components(prediction), reference)
    assert 0 < sensitivity < 1
    assert 0 < precision < 1
    assert measured["LesionSensitivity"] == pytest.approx(sensitivity)
    assert measured["LesionPrecision"] == pytest.approx(precision)
    f1 = 2 * sensitivity * precision / (sensitivity + precision)
    assert measured["LesionF1"] == pytest.approx(f1)


def test_lesions_that_meet_at_a_corner_are_one():
    mask = np.zeros((4, 4, 4), dtype=bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[3, 3, 3] = True
    assert Structure(mask, (1, 1, 1)).lesion_count == 2


def test_both_empty_has_no_value():
    empty = np.zeros((4, 4), dtype=bool)
    measured = measure(empty, empty, (1, 1))
    assert all(math.isnan(value) for value in measured.values())


def test_one_empty_has_the_worst_values():
    empty, full = np.zeros((4, 4), dtype=bool), np.ones((4, 4), dtype=bool)
    missed, alarm = measure(full, empty, (1, 1)), measure(empty, full, (1, 1))
    for measured in (missed, alarm):
        assert measured["NSD"] == measured["LesionF1"] == 0
        assert measured["HD95"] == measured["ASD"] == math.inf
    assert (missed["LesionSensitivity"], alarm["LesionPrecision"]) == (0, 0)
    assert math.isnan(missed["LesionPrecision"])
    assert math.isnan(alarm["LesionSensitivity"])


def test_a_single_slice_has_a_contour():
    box = np.zeros((10, 10), dtype=bool)
    box[2:8, 2:8] = True
    other = np.roll(box, 1, axis=1)
    flat = measure(box, other, (1.0, 2.0))
    assert measure(box[None], other[None], (999.0, 1.0, 2.0)) == flat
    assert len(Structure(box[None], (999.0, 1.0, 2.0)).surface) == 20


def test_a_border_with_ignored_voxels_is_no_surface():
    reference = np.zeros((3, 12), dtype=bool)
    reference[:, 4:] = True
    ignored = np.zeros_like(reference)
    ignored[:, 8:] = True
    prediction = np.zeros_like(reference)
    prediction[:, 4:8] = True  # differs from the reference only where nothing counts
    measured = measure(reference, prediction, (1, 1), 0, ignored)
    assert (measured["NSD"], measured["HD95"], measured["ASD"]) == (1, 0, 0)
    middle = Structure(reference, (1, 1), ignored).surface[:, 1]
    assert 7 not in middle[np.isin(Structure(reference, (1, 1), ignored).surface[:, 0], [1])]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((6, 2, 3), {"Dice": 12 / 17, "IoU": 6 / 11, "Sensitivity": 2 / 3, "Precision": 0.75}),
        ((6, 2, 3), {"RVE": 1 / 9}),
        ((0, 0, 5), {"Dice": 0, "IoU": 0, "Sensitivity": 0, "Precision": math.nan, "RVE": 1}),
        ((0, 5, 0), {"Dice": 0, "Sensitivity": math.nan, "Precision": 0, "RVE": math.nan}),
        ((0, 0, 0), dict.fromkeys(("Dice", "IoU", "Sensitivity", "Precision", "RVE"), math.nan)),
    ],
)
def test_overlap_from_counts(counts, expected):
    measured = counts_to_metrics(dict(zip(("TP", "FP", "FN"), counts, strict=True)))
    assert {name: measured[name] for name in expected} == pytest.approx(expected, nan_ok=True)


def test_every_metric_is_measured():
    mask = np.ones((2, 2), dtype=bool)
    measured = measure(mask, mask, (1, 1)) | counts_to_metrics({"TP": 4, "FP": 0, "FN": 0})
    assert set(METRICS) == set(measured)
    assert all(measured[name] == metric.higher_is_better for name, metric in METRICS.items())


def test_a_structure_among_ignored_voxels_has_no_distance():
    """It is there, but where it ends is not known: neither close nor far from another."""
    reference = np.ones((3, 3), dtype=bool)
    ignored = np.pad(np.zeros((3, 3), dtype=bool), 2, constant_values=True)
    inside = np.pad(reference, 2)
    other = np.zeros_like(inside)
    measured = measure(inside, other | inside, (1, 1), ignored=ignored)
    assert math.isnan(measured["HD95"])
    assert measured["LesionF1"] == 1
