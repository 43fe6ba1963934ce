"""The report on made-up trainings, by the library and by the command."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from nnunet_unifiedloss.cli import main
from nnunet_unifiedloss.compare import report
from nnunet_unifiedloss.compare.analysis import ALL_LABELS
from nnunet_unifiedloss.compare.comparison import Comparison, compare
from nnunet_unifiedloss.compare.figures import ReportFigure
from nnunet_unifiedloss.compare.plots import plot_worst_case
from nnunet_unifiedloss.compare.report import write_report
from nnunet_unifiedloss.compare.tables import TABLES, as_json
from tests.helpers.results_folder import TWO_LABELS, ResultsFolder, lesions, shifted

FILES = ["cases.csv", "figures", "report.html", "summary.csv", "summary.md", "summary.tex"]
TRAINERS = {"nnUNetTrainer": 2, "nnUNetTrainerDice": 1, "nnUNetTrainerUnifiedFocal_delta0.7": 0}
COMMAND = "compare -d 4 -f 0 1 -np 1"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> ResultsFolder:
    """Three trainers, the better the less they shift, on two folds of six cases."""
    folder = ResultsFolder(tmp_path_factory.mktemp("made"), TWO_LABELS)
    folder.add_cases(lesions(12))
    for fold in (0, 1):
        names = [f"case_{number:03d}" for number in range(6 * fold, 6 * fold + 6)]
        for trainer, steps in TRAINERS.items():
            folder.add_training(trainer, names, shifted(steps, noise=0.002, seed=steps), fold)
    return folder


@pytest.fixture(scope="module")
def folders(made) -> Iterator[ResultsFolder]:
    with pytest.MonkeyPatch.context() as environment:
        for name, value in made.environment().items():
            environment.setenv(name, value)
        yield made


@pytest.fixture(scope="module")
def comparison(folders) -> Comparison:
    return compare([4], folds=[0, 1])


@pytest.fixture
def undrawn(monkeypatch) -> None:
    """Files of figures with nothing in them, because drawing takes most of the time."""

    def figures(comparison: Comparison) -> Iterator[ReportFigure]:
        for name in ["cases", *["curves"][: len(comparison.curves)]]:
            yield ReportFigure(name, name, "", b"<svg/>", b"png")

    monkeypatch.setattr(report, "report_figures", figures)


class Page(HTMLParser):
    """Sources that a page loads; fails on tags that are not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "br", "link", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_report_is_complete(comparison, tmp_path):
    page_file = write_report(comparison, tmp_path / "deep" / "report", command="the command")
    folder = page_file.parent
    assert sorted(path.name for path in folder.iterdir()) == FILES
    text = page_file.read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.sources, "no picture"
    assert all(source.startswith("data:image/") for source in page.sources)
    assert "http://" not in re.sub(r"data:image/[^\"]*", "", text)
    assert "the command" in text
    assert "width=device-width" in text
    figures = {path.name for path in (folder / "figures").iterdir()}
    names = [
        "cases",
        "curves",
        "differences",
        "critical_difference",
        "sizes_1_core",
        "sizes_2_edema",
    ]
    names += [f"worst_{trainer}" for trainer in TRAINERS]
    written = {f"{name}.{kind}" for name in names for kind in ("svg", "png")}
    assert figures == written | {report.LIST_NAME}
    assert len(page.sources) == len(names)


def test_tables_hold_what_the_comparison_says(comparison, tmp_path, undrawn):
    folder = write_report(comparison, tmp_path / "report").parent
    cases = pd.read_csv(folder / "cases.csv")
    pd.testing.assert_frame_equal(
        cases[["case", "label", "metric", "value"]],
        comparison.results.table[["case", "label", "metric", "value"]],
        check_dtype=False,
    )
    assert {"loss", "delta"} <= set(cases.columns)
    summary = pd.read_csv(folder / "summary.csv").set_index(["metric", "label", "method"])
    row = summary.loc[("Dice", ALL_LABELS, "nnUNetTrainerDice")]
    scores = comparison.scores("Dataset004_Made", "Dice", ALL_LABELS)
    assert row["mean"] == pytest.approx(scores["nnUNetTrainerDice"].mean())
    difference = scores["nnUNetTrainerDice"] - scores["nnUNetTrainer"]
    assert row["difference"] == pytest.approx(difference.mean())
    markdown = (folder / "summary.md").read_text(encoding="utf-8")
    assert f"{row['mean']:.3f}" in markdown
    assert f"{row['mean']:.3f}" in (folder / "summary.tex").read_text(encoding="utf-8")
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1
    assert len(rows) == 2 + len(TRAINERS)


def test_the_better_prediction_is_ranked_first(comparison):
    expected = sorted(TRAINERS, key=TRAINERS.__getitem__)
    assert comparison.methods == expected
    assert comparison.settings.baseline == "nnUNetTrainer"


def test_a_failure_leaves_the_earlier_report(comparison, tmp_path, monkeypatch, undrawn):
    folder = tmp_path / "report"
    write_report(comparison, folder, command="the first")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report, "_page", fail)
    with pytest.raises(OSError, match="No space left"):
        write_report(comparison, folder, command="the second")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_failure_at_the_last_moment_puts_everything_back(
    comparison, tmp_path, monkeypatch, undrawn
):
    folder = tmp_path / "report"
    write_report(comparison, folder, command="the first")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    real = os.replace

    def fail(source, target):
        if Path(target) == folder / "summary.md" and "earlier" not in str(source):
            raise OSError(5, "Input/output error")
        real(source, target)

    monkeypatch.setattr(report.os, "replace", fail)
    with pytest.raises(OSError, match="Input/output"):
        write_report(comparison, folder, command="the second")
    monkeypatch.undo()
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_obstacles_are_named(comparison, folders, tmp_path, capsys, undrawn):
    folder = tmp_path / "report"
    (folder / "report.html").mkdir(parents=True)
    (folder / "summary.csv").write_text("earlier")
    with pytest.raises(IsADirectoryError, match=r"report\.html is a folder .*remedy: another -o"):
        write_report(comparison, folder)
    assert (folder / "summary.csv").read_text() == "earlier"
    file = tmp_path / "file"
    file.write_text("")
    assert main([*COMMAND.split(), "-o", str(file)]) == 1
    assert "is a file, not a folder for a report" in capsys.readouterr().err


def test_data_sets_with_other_labels_of_odd_names(tmp_path, monkeypatch):
    """The labels of one are not those of the other, and nothing in a name is taken for code."""
    trainings = []
    for number, labels in (
        (4, {"background": 0, '<b>&"x/$y^$': 1, "_core": 2}),
        (5, {"background": 0, "a b": [1, 2], "a/b": [2]}),
    ):
        folder = ResultsFolder(tmp_path, labels, dataset=f"Dataset{number:03d}_Odd")
        folder.add_cases(lesions(6, seed=number))
        for trainer, steps in list(TRAINERS.items())[:2]:
            names = [f"case_{number:03d}" for number in range(6)]
            trainings.append(folder.add_training(trainer, names, shifted(steps)))
    for name, value in folder.environment().items():
        monkeypatch.setenv(name, value)
    comparison = compare([4, 5], folds=[0])
    page_file = write_report(comparison, tmp_path / "report")
    text = page_file.read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.open == []
    assert "<b>&" not in text
    assert "&lt;b&gt;&amp;" in text
    figures = {path.name for path in (tmp_path / "report" / "figures").glob("*.png")}
    assert len([name for name in figures if name.startswith("sizes_")]) == 4
    tex = (tmp_path / "report" / "summary.tex").read_text(encoding="utf-8")
    unescaped = re.findall(r"(?<!\\)[_%&#]", re.sub(r"(?m)^%.*$|\\label{.*?}| & |%$", "", tex))
    assert unescaped == []
    assert "Over 2 data sets" in text


def test_a_new_report_takes_the_place_of_the_old(comparison, tmp_path, undrawn):
    folder = tmp_path / "report"
    write_report(comparison, folder, command="the first")
    stale = folder / "figures" / "curves.png"
    own = folder / "figures" / "my_figure.tex"
    for path in (own, folder / "notes.txt"):
        path.write_text("the user's own")
    without_curves = dataclasses.replace(comparison, curves=comparison.curves.iloc[:0])
    write_report(without_curves, folder, command="the second")
    assert "the second" in (folder / "report.html").read_text(encoding="utf-8")
    assert not stale.exists()
    assert own.read_text() == (folder / "notes.txt").read_text() == "the user's own"
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "notes.txt"])


def test_json_has_every_table(comparison):
    content = json.loads(as_json(comparison))
    assert content["methods"] == comparison.methods
    assert content["settings"]["baseline"] == "nnUNetTrainer"
    for name in TABLES:
        assert len(content[name]) == len(getattr(comparison, name))


def test_the_command(folders, tmp_path, capsys, undrawn):
    folder = tmp_path / "report"
    assert main([*COMMAND.split(), "-o", str(folder)]) == 0
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if "nnUNetTrainer" in line and "│" in line]
    assert [line.split()[1] for line in lines] == sorted(TRAINERS, key=TRAINERS.__getitem__)
    assert "(baseline)" in lines[-1]
    assert "On Dataset004_Made (12 cases) nnUNetTrainerUnifiedFocal_delta0.7 ranks best" in printed
    assert f"report: {folder / 'report.html'}" in printed
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert f"nnunet-unifiedloss {COMMAND} -o {folder}" in html


def test_the_command_prints_json_only(folders, capsys):
    assert main([*COMMAND.split(), "--json", "--metrics", "HD95", "Dice"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["settings"]["metrics"] == ["HD95", "Dice"]
    assert {row["metric"] for row in content["differences"]} == {"HD95", "Dice"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["-d", "77"], "data set 77: no folder Dataset077_"),
        (["-tr", "nnUNetTrainerNone"], "-tr nnUNetTrainerNone: nothing was trained with it on"),
        (["-c", "4d"], "-c 4d: nothing was trained with it on Dataset004_Made; there is 3d_f"),
        (["-p", "Nope"], "-p Nope: nothing was trained with it"),
        (["--metrics", "DSC"], "unknown metric DSC; possible: Dice"),
        (["--baseline", "nnUNetTrainerNone"], "baseline 'nnUNetTrainerNone' is none of"),
        (["-f", "7"], "no finished training to compare"),
        (["--tolerance", "-2"], "tolerance must be a distance in mm ≥ 0, got -2"),
    ],
)
def test_bad_arguments_are_named(folders, capsys, tmp_path, change, message):
    folder = tmp_path / "report"
    assert main([*COMMAND.split(), "-o", str(folder), *change]) == 1
    shown = capsys.readouterr().err
    assert message in shown
    assert "Measuring" not in shown
    assert not folder.exists()


def test_strict_refuses_to_leave_out_a_case(folders, tmp_path, monkeypatch, capsys):
    copy = tmp_path / "results"
    shutil.copytree(folders.root / "nnUNet_results", copy)
    monkeypatch.setenv("nnUNet_results", str(copy))
    (cut,) = copy.glob("*/nnUNetTrainerDice__*/fold_0/validation/case_003.nii.gz")
    cut.write_bytes(cut.read_bytes()[:40])
    assert main([*COMMAND.split(), "--strict"]) == 1
    assert f"{cut}: cannot be read" in capsys.readouterr().err
    assert main(COMMAND.split()) == 0
    printed = capsys.readouterr().out
    assert "note: left out: 1 of 12 cases are not there for every method: case_003" in printed
    assert f"note: {cut}: cannot be read" in printed
    assert "(11 cases)" in printed


def test_worst_cases_without_the_raw_images(comparison, monkeypatch):
    drawn = [Figure().subplots() for _ in range(2)]
    with_image = plot_worst_case(comparison, method="nnUNetTrainer", ax=drawn[0])
    monkeypatch.delenv("nnUNet_raw")
    without = plot_worst_case(comparison, method="nnUNetTrainer", ax=drawn[1])
    shown = [[text.get_text() for text in ax.texts] for ax in (with_image, without)]
    assert shown == [["image", "reference", "prediction"], ["reference", "prediction"]]
    scores = comparison.scores("Dataset004_Made", "Dice", ALL_LABELS)["nnUNetTrainer"]
    assert with_image.get_title().startswith(str(scores.idxmin()))


def test_curves_are_read_from_the_logs(comparison):
    curves = comparison.curves
    assert curves.groupby(["method", "fold"]).size().eq(3).all()
    # the NaN of an absent class is no part of the mean
    assert curves["pseudo_dice"].unique().tolist() == [0, 0.25, 0.5]
    assert curves["train_loss"].iloc[1] == pytest.approx(0.9)
