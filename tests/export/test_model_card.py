"""The model card and the metrics in it."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
import torch

from nnunet_unifiedloss.cli import main
from nnunet_unifiedloss.export import select_models
from nnunet_unifiedloss.export.card import model_card
from nnunet_unifiedloss.export.crossvalidation import estimate, estimates
from nnunet_unifiedloss.export.provenance import trained_by
from tests.helpers.trained_models import DATASET, TRAINER, write_model


def card(results, configuration="2d", folds=("0",), trainer=TRAINER, **options) -> str:
    chosen = select_models(results, DATASET, [configuration], trainer=trainer, folds=folds)
    origins = [trained_by(model) for model in chosen]
    return model_card(chosen, origins, trainer_in_checkpoints="nnUNetTrainer", **options)


def test_the_card_is_complete(results):
    write_model(results, "regions", "3d_fullres")
    text = card(results, "3d_fullres")
    for expected in (
        "Segments Dataset004_Hippocampus, input: MRI.",
        "| Region (overlapping, sigmoid) | value |",
        "| hippocampus | [1, 2] |",
        "Written in the order [2, 1].",
        "Training set: 20 cases.",
        "CC-BY-SA 4.0",
        f"- Trainer: {TRAINER}",
        "UnifiedFocalLoss (weight=0.5 delta=0.7 gamma=0.5 ",
        "- Loss scale: 3.57\n",
        "- Architecture: PlainConvUNet, features 4-8",
        "- Spacing: 1 × 1 × 1",
        "- Patch: 16 × 24 × 20, normalisation: ZScoreNormalization",
        "num_epochs 2",
        f"-d {DATASET} -c 3d_fullres -f 0 -tr {TRAINER} -p nnUNetPlans",
        "over the cases whose reference or prediction has the label:",
        "| hippocampus (1, 2) | 4 | 0.650 (",
        "| anterior 1 | 3 | 0.400 (",
    ):
        assert expected in text, expected
    assert text.count("(to be filled in:") == 3
    filled = card(results, "3d_fullres", notes="For research.\n")
    assert "## Intended use and limits\n\nFor research.\n\n## Licence" in filled
    assert "(to be filled in:" not in filled


def test_regions_have_their_names(results):
    folder = write_model(results, "regions")
    dataset = json.loads((folder / "dataset.json").read_text())
    dataset["labels"] = {"background": 0, "both": [2, 1], "front": [1]}
    (folder / "dataset.json").write_text(json.dumps(dataset))
    path = folder / "fold_0" / "validation" / "summary.json"
    metrics = {key: {"Dice": 0.5, "IoU": 0.4} for key in ("(2, 1)", "(1,)")}  # as nnU-Net does
    path.write_text(json.dumps({"metric_per_case": [{"metrics": metrics}]}))
    text = card(results)
    assert "| both (2, 1) | 1 | 0.500 | 0.400 |" in text
    assert "| front (1,) | 1 |" in text


def test_unknown_facts_are_marked(results):
    folder = write_model(results, "ignore", folds=("all",))
    dataset = json.loads((folder / "dataset.json").read_text())
    del dataset["licence"], dataset["numTraining"]
    (folder / "dataset.json").write_text(json.dumps(dataset))
    text = card(results, folds=("all",))
    assert "Training set: unknown number of cases." in text
    assert "Trained with an ignore label, which is never predicted." in text
    assert "(to be filled in: the licence of the training data" in text
    assert "Cross-validation: none (nnU-Net validates fold all on the cases that it was" in text


@pytest.mark.parametrize(
    ("trainer", "loss"),
    [
        ("nnUNetTrainer", "Dice + cross entropy, nnU-Net's default"),
        ("nnUNetTrainerDA5", "Dice + cross entropy, nnU-Net's default"),
        ("nnUNetTrainerDiceLoss", "that of nnUNetTrainerDiceLoss"),
        ("nnUNetTrainerWeightedCrossEntropy", "WeightedCrossEntropyLoss (classWeights=from the"),
    ],
)
def test_losses_of_other_trainers(results, trainer, loss):
    write_model(results, trainer=trainer)
    assert f"- Loss: {loss}" in card(results, trainer=trainer)


def test_the_card_tells_of_another_scale_in_a_checkpoint(results, tmp_path, capsys):
    """A training that began before trainers had scales kept 1."""
    folder = write_model(results, folds=(0, 1))
    path = folder / "fold_1" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    del checkpoint["logging"]["loss_scale"]
    torch.save(checkpoint, path)
    command = ["export", "-d", "4", "-c", "2d", "-tr", TRAINER, "-f", "0", "1", "--no-verify"]
    assert main([*command, "-o", str(tmp_path / "model.zip")]) == 0
    assert main(["verify", str(tmp_path / "model.zip")]) == 0
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("MODEL_CARD.md")]
        text = archive.read(name).decode()
    assert "- Loss scale: 3.57\n" in text
    assert "- 2d, fold 1, checkpoint_final.pth: trained with a loss scale of 1.\n" in text
    assert "fold 0, checkpoint_final.pth: trained" not in text


def test_metrics_are_those_of_all_cases_of_all_folds(results):
    write_model(results, folds=(0, 1))
    (model,) = select_models(results, DATASET, ["2d"], trainer=TRAINER, folds=["0", "1"])
    found = estimates(model)
    assert found.keys() == {"1", "2"}
    # the cases' Dice as written in trained_models.make_summary
    first = np.array([0.5, 0.6, 0.7, 0.8, 0.51, 0.61, 0.71, 0.81])
    assert found["1"]["Dice"].mean == pytest.approx(first.mean())
    assert found["1"]["IoU"].mean == pytest.approx((first / (2 - first)).mean())
    second = found["2"]["Dice"]  # without the case whose metric is NaN
    assert (second.cases, second.mean) == (6, pytest.approx(0.4))
    means = np.random.default_rng(5).choice(first, (20000, 8)).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    assert found["1"]["Dice"].low == pytest.approx(low, abs=0.005)
    assert found["1"]["Dice"].high == pytest.approx(high, abs=0.005)


def test_too_few_cases_have_no_interval():
    assert str(estimate([])) == "none"
    assert str(estimate([0.5])) == "0.500"
    assert str(estimate([float("nan")])) == "none"


def test_the_command_prints_card_saving_and_digest(results, tmp_path, capsys):
    write_model(results)
    notes = tmp_path / "notes.md"
    notes.write_text("Not for clinical use.")
    target = tmp_path / "model.zip"
    command = ["export", "-d", "4", "-c", "2d", "-tr", TRAINER, "-f", "0", "-o", str(target)]
    assert main([*command, "--notes", str(notes)]) == 0
    out = capsys.readouterr().out
    assert "Not for clinical use." in out
    assert "% saved" in out
    assert "SHA-256: " in out
    notes.write_bytes(b"\xff")
    assert main([*command, "--notes", str(notes)]) == 1
    assert f"--notes {notes}: not readable as UTF-8" in capsys.readouterr().err
    assert main([*command, "--no-verify"]) == 0
    assert "Not verified (--no-verify)" in capsys.readouterr().out
    assert main(["verify", str(target)]) == 0
    assert "not verified: " in capsys.readouterr().out
    assert main([*command, "--notes", str(tmp_path / "missing.md")]) == 1
    assert "missing.md" in capsys.readouterr().err
    assert main(["export", "-d", "4", "-c", "2d", "-tr", TRAINER, "-o", str(target)]) == 1
    assert "fold_1: this fold is not trained" in capsys.readouterr().err
