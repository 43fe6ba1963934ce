"""The analysis against SciPy, scikit-posthocs and examples calculated by hand."""

from __future__ import annotations

import gc
import itertools

import numpy as np
import pandas as pd
import pytest
import scikit_posthocs
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from scipy import stats

from nnunet_unifiedloss.compare import plots
from nnunet_unifiedloss.compare.analysis import ALL_LABELS, Settings, difference_table
from nnunet_unifiedloss.compare.case_table import COLUMNS, Results
from nnunet_unifiedloss.compare.comparison import analyse, compare
from nnunet_unifiedloss.compare.verdict import caveats, short_names, verdict

BASELINE = "nnUNetTrainer"


def results(
    scores: dict[str, np.ndarray], *, dataset="Dataset004_Made", label="lesion", metric="Dice"
) -> Results:
    """Results with one value for each method and case; NaN is a value that is not defined."""
    rows = []
    for method, values in scores.items():
        for number, value in enumerate(values):
            place = dataset, "2d", "nnUNetPlans", method, method, "0", f"case_{number:03d}", label
            volume = 10.0 * 1.1**number
            counts = {"n_ref": volume, "n_pred": volume, "ReferenceVolume": volume}
            rows += [(*place, name, number) for name, number in {metric: value, **counts}.items()]
    return Results(pd.DataFrame(rows, columns=COLUMNS), {})


def joined(*parts: Results) -> Results:
    return Results(pd.concat([part.table for part in parts], ignore_index=True), {})


def random_scores(cases=30, methods=4, seed=0, spread=0.03) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    names = [BASELINE, "nnUNetTrainerDice", "nnUNetTrainerFocal", "nnUNetTrainerTversky"]
    of_case = generator.beta(8, 2, cases)
    return {name: of_case + generator.normal(0, spread, cases) for name in names[:methods]}


def test_tables_agree_with_scipy_called_by_hand():
    scores = random_scores()
    comparison = analyse(results(scores))
    assert comparison.settings.baseline == BASELINE
    summary = comparison.summary.set_index("method")
    differences = comparison.differences.set_index("method")
    raw = {name: stats.wilcoxon(values, scores[BASELINE]) for name, values in scores.items()
           if name != BASELINE}  # fmt: skip
    in_order = sorted(raw, key=lambda name: raw[name].pvalue)
    adjusted = np.maximum.accumulate(
        [(len(raw) - index) * raw[name].pvalue for index, name in enumerate(in_order)]
    )
    for name, values in scores.items():
        row = summary.loc[name]
        assert row["mean"] == pytest.approx(values.mean())
        assert row["median"] == pytest.approx(np.median(values))
        assert [row["q1"], row["q3"]] == pytest.approx(np.percentile(values, [25, 75]))
        if name != BASELINE:
            row = differences.loc[name]
            assert row["difference"] == pytest.approx((values - scores[BASELINE]).mean())
            assert row["p"] == raw[name].pvalue
            assert row["p_holm"] == pytest.approx(min(adjusted[in_order.index(name)], 1))
    friedman = comparison.friedman.iloc[0]
    expected = stats.friedmanchisquare(*scores.values())
    assert friedman["statistic"] == pytest.approx(expected.statistic)
    assert friedman["p"] == pytest.approx(expected.pvalue)


def test_pairwise_tests_agree_with_posthocs():
    scores = random_scores(methods=2)
    table = pd.DataFrame(scores).melt(var_name="method")
    expected = scikit_posthocs.posthoc_wilcoxon(table, val_col="value", group_col="method")
    comparison = analyse(results(scores))
    assert comparison.differences["p"].iloc[0] == pytest.approx(expected.iloc[0, 1])


def test_holm_counts_every_comparison_made():
    scores = random_scores(methods=2)
    one = analyse(results(scores)).differences
    other = results(random_scores(methods=2, seed=1), metric="HD95")
    other.table = other.table[other.table["metric"] == "HD95"]
    two = analyse(joined(results(scores), other)).differences
    # with one more comparison the smaller p value counts twice
    smallest = two.loc[two["p"].idxmin()]
    assert smallest["p_holm"] == pytest.approx(min(2 * smallest["p"], 1))
    assert one["p_holm"].iloc[0] == one["p"].iloc[0]


def test_ranks_by_hand():
    comparison = analyse(
        results(
            {
                "a": np.array([0.9, 0.9, 0.9, 0.5, 0.9, 0.9]),
                "b": np.array([0.8, 0.8, 0.9, 0.6, 0.8, 0.8]),
                "c": np.array([0.7, 0.7, 0.7, 0.7, 0.7, 0.7]),
            }
        ),
        baseline="c",
    )
    ranks = comparison.ranking.set_index("method")["mean_rank"]
    assert ranks.to_dict() == pytest.approx({"a": (4 + 1.5 + 3) / 6, "b": (8 + 1.5 + 2) / 6,
                                             "c": (15 + 1) / 6})  # fmt: skip
    assert comparison.methods == ["a", "b", "c"]
    assert comparison.ranking["first"].sum() == pytest.approx(1)


def test_where_lower_is_better_the_smallest_ranks_first():
    far = {"near": np.arange(8.0) + 1, "far": np.arange(8.0) + 2}
    comparison = analyse(results(far, metric="HD95"), baseline="far")
    assert comparison.methods == ["near", "far"]
    row = comparison.differences.iloc[0]
    assert (row["difference"], row["better"], row["worse"]) == (-1, 8, 0)


def test_undefined_values_are_left_out_and_counted():
    scores = random_scores(methods=2)
    scores[BASELINE][:3] = np.nan
    scores["nnUNetTrainerDice"][2:5] = np.nan
    comparison = analyse(results(scores))
    summary = comparison.summary.set_index("method")
    assert summary["undefined"].tolist() == [3, 3]
    assert summary.loc[BASELINE, "mean"] == pytest.approx(np.nanmean(scores[BASELINE]))
    row = comparison.differences.iloc[0]
    assert row["cases"] == 25
    kept = slice(5, None)
    expected = stats.wilcoxon(scores["nnUNetTrainerDice"][kept], scores[BASELINE][kept]).pvalue
    assert row["p"] == expected


def test_the_mean_over_structures_compares_the_same_ones():
    one, two = random_scores(methods=2, seed=0), random_scores(methods=2, seed=1)
    one[BASELINE][0] = np.nan
    comparison = analyse(joined(results(one, label="one"), results(two, label="two")))
    mean = comparison.scores("Dataset004_Made", "Dice", ALL_LABELS)
    assert comparison.labels == [ALL_LABELS, "one", "two"]
    dice = "nnUNetTrainerDice"
    assert mean.loc["case_000", dice] == two[dice][0]  # the baseline has no value for the other
    assert mean.loc["case_001", dice] == pytest.approx((one[dice][1] + two[dice][1]) / 2)


def test_cases_that_not_all_have_are_dropped_and_counted():
    scores = random_scores(methods=2)
    found = results(scores)
    table = found.table
    gone = (table["method"] == BASELINE) & table["case"].isin(["case_001", "case_007"])
    found.table = table[~gone]
    with pytest.raises(ValueError, match=r"--strict: 2 of 30 cases .*case_001 \(fold 0\)"):
        analyse(found, strict=True)
    comparison = analyse(found)
    assert comparison.differences["cases"].tolist() == [28]
    assert "left out: 2 of 30 cases are not there for every method" in caveats(comparison)[0]


def test_folds_are_never_mixed():
    """The same case in other folds of two trainers is no pair."""
    scores = random_scores(methods=2, cases=10)
    found = results(scores)
    moved = (found.table["method"] == BASELINE) & (found.table["case"] == "case_004")
    found.table.loc[moved, "fold"] = "1"
    assert analyse(found).differences["cases"].tolist() == [9]


def test_a_case_of_two_folds_is_one_case():
    first, second = (random_scores(methods=2, cases=10, seed=seed) for seed in (0, 1))
    other = results(second)
    other.table["fold"] = "1"
    comparison = analyse(joined(results(first), other))
    paired = comparison.scores("Dataset004_Made", "Dice", "lesion")
    assert len(paired) == 10
    expected = (first[BASELINE] + second[BASELINE]) / 2
    np.testing.assert_allclose(paired[BASELINE], expected)


def test_nothing_in_common():
    found = results(random_scores(methods=2, cases=3))
    found.table.loc[found.table["method"] == BASELINE, "fold"] = "1"
    with pytest.raises(ValueError, match="no case is common to all of the 2 methods"):
        analyse(found)


def test_unknown_metrics_and_baselines():
    found = results(random_scores(methods=2))
    with pytest.raises(ValueError, match=r"unknown metric dice; possible: Dice, IoU"):
        analyse(found, metrics=["dice"])
    with pytest.raises(ValueError, match=r"unknown metric F1"):
        compare([4], metrics=["F1"])  # before anything is looked for
    with pytest.raises(ValueError, match=r"baseline 'nnUNetTrainerX' is none of nnUNetTrainer, "):
        analyse(found, baseline="nnUNetTrainerX")


def test_too_few_cases_say_what_cannot_be_concluded():
    scores = {BASELINE: np.linspace(0.5, 0.6, 5), "nnUNetTrainerDice": np.linspace(0.8, 0.9, 5)}
    comparison = analyse(results(scores))
    assert comparison.differences[["p", "p_holm", "difference_low"]].isna().all(axis=None)
    assert np.isnan(comparison.ranking["first"]).all()
    text = verdict(comparison)
    assert "With 5 cases no difference can be shown" in text
    assert "p would be 0.0625; at least 6 are needed" in text


def test_too_many_comparisons_for_the_cases_are_noted():
    scores = random_scores(cases=6, methods=4)
    text = " ".join(caveats(analyse(results(scores))))
    assert "with 6 cases and Holm's adjustment over 3 comparisons not even" in text


def test_strata_by_size():
    """The method is better on the small half only, and the strata show it."""
    cases = 40
    baseline = random_scores(cases=cases, methods=1)[BASELINE]
    better = baseline + np.where(np.arange(cases) < 20, 0.1, 0.0)
    comparison = analyse(results({BASELINE: baseline, "nnUNetTrainerDice": better}))
    strata = comparison.strata
    assert strata["cases"].tolist() == [10] * 4
    assert strata["difference"].tolist() == pytest.approx([0.1, 0.1, 0, 0])
    assert strata["size_high"].is_monotonic_increasing
    assert strata["size_low"].iloc[0] == pytest.approx(10)
    sizes = 10 * 1.1 ** np.arange(cases)
    expected = stats.spearmanr(np.log(sizes), better - baseline)
    row = comparison.sizes.iloc[0]
    assert row["correlation"] == pytest.approx(expected.statistic, abs=1e-6)


def test_several_data_sets():
    names = [f"Dataset{number:03d}_Made" for number in range(1, 9)]
    parts = []
    for seed, name in enumerate(names):
        scores = random_scores(seed=seed, cases=12, spread=0.01)
        scores["nnUNetTrainerDice"] = scores["nnUNetTrainerDice"] + 0.05
        parts.append(results(scores, dataset=name))
    comparison = analyse(joined(*parts))
    assert comparison.datasets == names
    table = comparison.dataset_ranks
    assert table.shape == (8, 4)
    assert comparison.methods[0] == "nnUNetTrainerDice"
    assert "Over 8 data sets nnUNetTrainerDice has the best mean rank" in verdict(comparison)
    blocks = plots.rank_blocks(comparison)
    np.testing.assert_array_equal(blocks, stats.rankdata(table.to_numpy(), axis=1))
    assert isinstance(plots.plot_critical_difference(comparison), Axes)


def test_a_single_trainer_is_described():
    comparison = analyse(results(random_scores(methods=1)))
    assert comparison.differences.empty
    assert "There is no other method" in verdict(comparison)


def test_the_verdict_names_who_has_the_same_rank():
    scores = random_scores(methods=1)
    said = verdict(analyse(results(scores | {"nnUNetTrainerDice": scores[BASELINE]})))
    assert f"{BASELINE} ranks best by Dice" in said
    assert "(the same rank: nnUNetTrainerDice)" in said
    assert "the same rank" not in verdict(analyse(results(random_scores())))


@pytest.mark.parametrize(
    ("gain", "text"),
    [
        (0.05, "Its difference to nnUNetTrainer is significant (difference +0.0"),
        (0.0, "cannot be concluded"),
        (-0.05, "It is the baseline; significantly different from it: nnUNetTrainerDice"),
    ],
)
def test_the_verdict_says_what_the_numbers_say(gain, text):
    scores = random_scores(methods=3, cases=40)
    scores["nnUNetTrainerDice"] = scores["nnUNetTrainerDice"] + gain
    said = verdict(analyse(results(scores)))
    assert text in said or (gain == 0 and "no other method differs" in said)
    assert said.startswith("On Dataset004_Made (40 cases)")


def test_empty_structures_are_counted():
    found = results(random_scores(methods=2, cases=10))
    table = found.table
    dice = table["method"] == "nnUNetTrainerDice"
    no_reference = table["case"].isin(["case_000", "case_001"]) & (table["metric"] == "n_ref")
    nothing = table["case"].isin(["case_001", "case_002"]) & (table["metric"] == "n_pred")
    table.loc[no_reference | (nothing & dice), "value"] = 0
    row = analyse(found).empties.set_index("method").loc["nnUNetTrainerDice"]
    assert row[["both_empty", "false_alarm", "missed"]].tolist() == [1, 1, 1]


def test_short_names():
    names = ["nnUNetTrainer_5epochs", "nnUNetTrainerUnifiedFocal_delta0.7_5epochs"]
    assert short_names(names) == dict(zip(names, ["nnUNetTrainer_5epochs", "UnifiedFocal_delta0.7"],
                                          strict=True))  # fmt: skip


def study(repetitions: int, gain: float) -> float:
    """The share of synthetic studies of 40 cases in which a trainer is called different.

    Dice of a case varies over cases much more than between trainers, as it does in reality.
    """
    called = 0
    settings = Settings(BASELINE, ("Dice",), samples=100)
    names = [f"case_{number}" for number in range(40)]
    index = pd.MultiIndex.from_product(
        [["Dataset004_Made"], ["lesion"], ["Dice"], names],
        names=["dataset", "label", "metric", "case"],
    )
    for seed in range(repetitions):
        generator = np.random.default_rng((seed, 7))
        of_case = generator.beta(8, 2, 40)
        scores = {
            name: np.clip(of_case + generator.normal(shift, 0.03, 40), 0, 1)
            for name, shift in ((BASELINE, 0.0), ("a", 0.0), ("b", gain))
        }
        differences = difference_table(pd.DataFrame(scores, index=index), settings)
        significant = differences.set_index("method")["p_holm"] < 0.05
        called += significant["b"] if gain else significant.any()
    return called / repetitions


@pytest.fixture
def closed_figures():
    """pyplot keeps every figure until it is closed."""
    yield
    plt.close("all")


@pytest.fixture
def frozen():
    """Holm's adjustment collects garbage each time; let it not look at all that is imported."""
    gc.freeze()
    yield
    gc.unfreeze()


def test_equal_trainers_are_seldom_called_different(frozen):
    assert study(200, gain=0.0) <= 0.05


def test_a_real_difference_is_mostly_found(frozen):
    assert study(200, gain=0.02) > 0.5


@pytest.mark.parametrize(("methods", "cases"), [(1, 3), (2, 1), (4, 12)])
def test_figures_are_drawn_of_anything(methods, cases, closed_figures):
    comparison = analyse(results(random_scores(methods=methods, cases=cases)))
    comparison.curves = pd.DataFrame(
        [
            {"dataset": "Dataset004_Made", "method": method, "fold": fold, "epoch": epoch,
             "pseudo_dice": 0.1 * epoch}
            for method, fold, epoch in itertools.product(comparison.methods, "01", range(3))
        ]
    )  # fmt: skip
    drawn = [plots.plot_cases, plots.plot_curves]
    if methods > 1:
        drawn += [plots.plot_differences, plots.plot_sizes]
    for plot in drawn:
        ax = plot(comparison)
        assert ax.lines or ax.containers
        ax.figure.canvas.draw()


def test_a_diagram_of_too_few_is_refused(closed_figures):
    comparison = analyse(results(random_scores(methods=2)))
    with pytest.raises(ValueError, match="at least 3 methods and 6 data sets"):
        plots.plot_critical_difference(comparison)


def test_the_forest_plot_fills_what_is_significant(closed_figures):
    scores = random_scores(methods=3, cases=40)
    scores["nnUNetTrainerDice"] = scores["nnUNetTrainerDice"] + 0.05
    comparison = analyse(results(scores))
    ax = plots.plot_differences(comparison)
    filled = [line for line in ax.lines if line.get_zorder() == 3 and len(line.get_xdata())]
    hollow = [line for line in ax.lines if line.get_markerfacecolor() == "white"]
    assert len(filled) == 1
    assert filled[0].get_zorder() > max(line.get_zorder() for line in hollow)
    difference = comparison.difference("Dataset004_Made", "nnUNetTrainerDice")
    assert filled[0].get_xdata() == pytest.approx([difference["difference"]])


def test_false_alarms_that_no_test_sees_are_noted():
    """The baseline is rightly empty, so it has no value, and the other's Dice of 0 no partner."""
    scores = random_scores(methods=2, cases=40)
    scores[BASELINE][20:] = np.nan
    scores["nnUNetTrainerDice"][20:] = 0
    text = " ".join(caveats(analyse(results(scores))))
    assert "in 20 cases only one of nnUNetTrainerDice and the baseline has a value" in text


def test_a_trainer_without_a_value_is_named():
    scores = random_scores(methods=2, cases=10)
    scores["nnUNetTrainerDice"][:] = np.nan
    with pytest.raises(ValueError, match=r"Precision for every method.*any: nnUNetTrainerDice"):
        analyse(results(scores, metric="Precision"))


def test_data_sets_with_other_labels(closed_figures):
    parts = [
        results(random_scores(methods=3, seed=n), dataset=f"Dataset{n:03d}_Made", label=name)
        for n, name in ((1, "tumour"), (2, "vessel"))
    ]  # fmt: skip
    comparison = analyse(joined(*parts))
    assert comparison.labels_of("Dataset001_Made") == [ALL_LABELS, "tumour"]
    for dataset in comparison.datasets:
        for plot in (plots.plot_differences, plots.plot_cases, plots.plot_sizes):
            plot(comparison, dataset=dataset).figure.canvas.draw()
    assert "Over 2 data sets" in verdict(comparison)


def test_ranks_over_data_sets_by_hand():
    """Ranks on each data set are averaged and tested with the data sets as the unit."""
    names = [f"Dataset{number:03d}_Made" for number in range(1, 8)]
    parts = [results(random_scores(seed=seed, cases=12), dataset=name)
             for seed, name in enumerate(names)]  # fmt: skip
    comparison = analyse(joined(*parts))
    of_sets = stats.rankdata(comparison.dataset_ranks.to_numpy(), axis=1)
    overall = comparison.overall.set_index("method")
    expected = dict(zip(comparison.methods, of_sets.mean(axis=0), strict=True))
    assert overall["mean_rank"].to_dict() == pytest.approx(expected)
    assert overall["first"].sum() == pytest.approx(1)
    friedman = stats.friedmanchisquare(*of_sets.T)
    assert overall["friedman_p"].iloc[0] == pytest.approx(friedman.pvalue)
