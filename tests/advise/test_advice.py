"""Findings and recommendations on phantoms and on the real data sets, and the table of rules."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from nnunet_unifiedloss.advise.advice import advise, as_json
from nnunet_unifiedloss.advise.rules import COST, FACTS, RULES
from nnunet_unifiedloss.training.catalogue import catalogue
from tests.advise.conftest import write_dataset, write_plans
from tests.helpers.documentation import ROOT, anchors, check, check_trainer


def image(*boxes, shape=(20, 40, 40)):
    """A label image with boxes (label, slices)."""
    labels = np.zeros(shape, dtype=np.uint8)
    for label, *slices in boxes:
        labels[tuple(slice(*each) for each in slices)] = label
    return labels


LARGE = image((1, (0, 10), (0, 20), (0, 20)))  # 4,000 of 32,000 voxels
SMALL = image((1, (2, 4), (2, 4), (2, 4)), (1, (9, 12), (9, 12), (9, 12)))  # 8 and 27
EMPTY = image()


def trainers(recommendations):
    return [item.trainer for item in recommendations]


def test_findings(raw):
    write_dataset(raw, [SMALL, EMPTY], spacing=(2, 1, 0.5))
    (found,) = advise(4).structures
    assert found.share == 35 / 64000
    assert (found.cases_without, found.absent, found.components, found.per_case) == (1, 0.5, 2, 2)
    assert (found.volumes.median, found.volumes.smallest, found.volumes.largest) == (17.5, 8, 27)
    assert (found.tiny_components, found.patches, found.tubular) == (0, None, 0)


def test_small_components_are_those_in_the_resolution_of_the_configuration(raw, preprocessed):
    write_dataset(raw, [SMALL])
    configurations = {
        "2d": {"spacing": [1.5, 1.5], "patch_size": [16, 16], "batch_size": 2},
        "3d_fullres": {"spacing": [2, 2, 2], "patch_size": [16, 16, 16], "batch_size": 2},
        "3d_lowres": {"inherits_from": "3d_fullres", "spacing": [4, 4, 4]},
    }
    write_plans(preprocessed, configurations=configurations)
    tiny = {name: advise(4, name).structures[0].tiny_components for name in configurations}
    assert tiny == {"2d": 1, "3d_fullres": 2, "3d_lowres": 2}  # 8 and 27 mm³
    assert (advise(4).configuration, advise(4).plans) == ("3d_fullres", "nnUNetPlans")
    (found,) = advise(4, "3d_fullres").structures
    assert 0.5 <= found.patches <= 1  # a patch covers 32 of at most 40 mm


def test_the_transposition_of_the_plans(raw, preprocessed):
    """A patch of two axes is a slice along the first axis of the transposed image."""
    array = image((1, (0, 20), (0, 40), (5, 6)))
    write_dataset(raw, [array], spacing=(1, 1, 4))
    plans = {"2d": {"spacing": [1, 1], "patch_size": [20, 40], "batch_size": 12}}
    write_plans(preprocessed, configurations=plans, axes=(2, 0, 1))
    sagittal = advise(4).structures[0].patches
    write_plans(preprocessed, configurations=plans)
    assert sagittal == pytest.approx(1 / 3 + 2 / 3 / 40, abs=0.05)  # one of 40 slices
    # 10 of 40 voxels along the last axis, whose spacing is 4
    assert advise(4).structures[0].patches == pytest.approx(1 / 3 + 2 / 3 * 6 / 31, abs=0.1)


def test_regions_and_ignore_label(raw):
    array = image((1, (0, 2), (0, 40), (0, 40)), (2, (0, 1), (0, 40), (0, 40)))
    array[10:] = 3
    labels = {"whole": [1, 2], "core": [2], "ignore": 3}
    write_dataset(raw, [array], labels, regions_class_order=[1, 2])
    whole, core = advise(4).structures
    assert (whole.name, whole.share, whole.components) == ("whole", 0.2, 1)
    assert (core.name, core.share, core.largest_ratio) == ("core", 0.1, 2)
    assert whole.rarest == 0.1


def test_the_preprocessed_labels_replace_missing_raw_ones(raw, preprocessed, monkeypatch):
    write_dataset(preprocessed, [LARGE], to="gt_segmentations")
    assert advise("Dataset004_Test").labels.endswith("gt_segmentations")
    monkeypatch.delenv("nnUNet_raw")
    assert advise(4).cases == 1


def test_files_listed_in_the_dataset(raw):
    folder = write_dataset(raw, [LARGE, SMALL], dataset={"a": {"label": "labelsTr/case_1.nii.gz"}})
    (folder / "labelsTr" / "case_0.nii.gz").unlink()
    assert advise(4).cases == 1


def test_several_processes_find_the_same(raw):
    write_dataset(raw, [LARGE, SMALL, EMPTY])
    calls = []
    advice = advise(4, processes=2, progress=lambda done, total: calls.append((done, total)))
    assert advice == advise(4)
    assert calls == [(done, 3) for done in range(4)]


# --- recommendations


def test_large_structures(raw):
    write_dataset(raw, [LARGE])
    advice = advise(4)
    names = ["nnUNetTrainer", "nnUNetTrainerDiceTopK", "nnUNetTrainerDiceFocal"]
    assert trainers(advice.first) == names
    assert "nnUNetTrainerTversky" in trainers(advice.avoid)
    assert advice.trainings == 15


def test_rare_structures(raw):
    write_dataset(raw, [SMALL])
    advice = advise(4)
    assert trainers(advice.first) == ["nnUNetTrainer", "nnUNetTrainerUnifiedFocal"]
    (reason,) = advice.first[1].reasons
    assert reason.because == {"lesion": "0.11 % of the voxels"}
    assert {"nnUNetTrainerCrossEntropy", "nnUNetTrainerDice"} <= set(trainers(advice.avoid))


def test_many_lesions_some_cases_without(raw):
    spots = image(*((1, (2, 4), (x, x + 2), (2, 4)) for x in range(2, 30, 4)))
    write_dataset(raw, [spots, EMPTY])
    advice = advise(4)
    assert "nnUNetTrainerUnifiedFocal_delta0.7" in trainers(advice.first)
    avoided = {"nnUNetTrainerShapeAware", "nnUNetTrainerExponentialLogarithmic"}
    assert avoided <= set(trainers(advice.avoid))


def test_classes_of_different_size(raw):
    array = image((1, (0, 10), (0, 20), (0, 20)), (2, *[(15, 16)] * 3), (3, *[(18, 19)] * 3))
    write_dataset(raw, [array], {"organ": 1, "a": 2, "b": 3})
    advice = advise(4)
    assert "nnUNetTrainerDiceFocal" in trainers(advice.first)
    assert "nnUNetTrainerGeneralizedDice" in trainers(advice.avoid)
    avoided = next(item for item in advice.avoid if item.trainer == "nnUNetTrainerHausdorffER")
    assert set(avoided.reasons[0].because) == {"a", "b"}


def test_tubes(raw):
    write_dataset(raw, [image((1, (0, 200), (5, 7), (5, 7)), shape=(200, 12, 12))])
    advice = advise(4)
    assert advice.structures[0].tubular == 1
    assert "nnUNetTrainerStructuralSimilarity" in trainers(advice.first)
    assert "nnUNetTrainerHausdorffER" in trainers(advice.avoid)


def test_a_structure_that_no_case_has_changes_nothing(raw, tmp_path, monkeypatch):
    write_dataset(raw, [SMALL], {"lesion": 1, "absent": 2})
    advice = advise(4)
    assert advice.structures[1].components == 0
    assert advice.structures[1].volumes is None
    because = [reason.because for item in advice.first for reason in item.reasons]
    assert "absent" not in {name for each in because for name in each}


EXPECTED = {
    "Dataset004_Hippocampus": {"DiceTopK", "DiceFocal"},
    "Dataset005_CHASE": {"StructuralSimilarity", "DiceTopK", "DiceFocal"},
    "Dataset006_IDRiD": {"UnifiedFocal", "UnifiedFocal_delta0.7", "DiceFocal"},
}


@pytest.mark.parametrize("dataset", EXPECTED)
def test_real_data(test_data, monkeypatch, dataset):
    if not (test_data / dataset).is_dir():
        pytest.skip(f"{test_data} has no {dataset}")
    monkeypatch.setenv("nnUNet_raw", str(test_data))
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    advice = advise(dataset)
    assert {name.removeprefix("nnUNetTrainer") for name in trainers(advice.first)} == {
        "",
        *EXPECTED[dataset],
    }
    if dataset == "Dataset006_IDRiD":
        shares = [round(100 * structure.share, 2) for structure in advice.structures]
        assert shares == [0.14, 1.25, 1.03, 0.24]
        assert [s.cases_without for s in advice.structures][3] == 28


# --- the result


def test_the_commands_are_accepted(raw):
    write_dataset(raw, [SMALL], name="Dataset040_Other")
    advice = advise(40)
    assert advice.sweep.startswith("nnunet-unifiedloss sweep -d 40 -c 3d_fullres -tr nnUNetTrainer")
    check(advice.sweep)
    check(advice.compare)


def test_json_has_everything(raw):
    write_dataset(raw, [SMALL, EMPTY])
    content = json.loads(as_json(advise(4)))
    assert content["structures"][0]["volumes"] == {"median": 17.5, "smallest": 8.0, "largest": 27.0}
    assert content["structures"][0]["patches"] is None
    assert content["first"][1]["reasons"][0]["evidence"]
    assert content["sweep"].startswith("nnunet-unifiedloss sweep")


# --- the table of rules


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: " ".join(rule.trainers))
def test_the_rules_name_trainers_and_pages_that_exist(rule):
    for trainer in rule.trainers:
        check_trainer(trainer)
    assert {condition.fact for condition in rule.conditions} <= FACTS.keys()
    for page, anchor in re.findall(r"(docs/\w+\.md)(?:#([\w-]+))?", rule.evidence):
        text = (ROOT / page).read_text(encoding="utf-8")
        assert not anchor or anchor in anchors(text)


def test_papers_are_those_of_the_losses():
    papers = "; ".join(entry.paper for entry in catalogue())
    for rule in RULES:
        for number in re.findall(r"arXiv:[\d.]+\d", rule.evidence):
            assert number in papers


def test_the_cost_is_the_measured_one():
    measured = json.loads((ROOT / "benchmarks" / "measured.json").read_text())
    recommended = {name.partition("_")[0] for rule in RULES for name in rule.trainers}
    for trainer, cost in COST.items():
        loss = trainer.removeprefix("nnUNetTrainer") + "Loss"
        expected = (measured["time"][loss], measured["memory"][loss]) if loss != "Loss" else (1, 1)
        assert cost == pytest.approx(expected, abs=0.006), trainer
        assert trainer in recommended
    tried = {name for rule in RULES if rule.verdict == "try" for name in rule.trainers}
    assert {name.partition("_")[0] for name in tried} == COST.keys()


def test_the_page_shows_the_rules():
    page = Path(ROOT / "docs" / "advise.md").read_text(encoding="utf-8")
    for rule in RULES:
        conditions = " and ".join(map(str, rule.conditions)) or "always"
        names = ", ".join(f"`{trainer}`" for trainer in rule.trainers)
        verdict = "try" if rule.verdict == "try" else "not first"
        row = f"| {conditions} | {verdict} | {names} | {rule.reason} | {rule.evidence} |"
        assert row in page, row
