"Oracles for the comparison of methods: everything is recomputed by hand, by enumeration or by a slow loop."

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from pruneresearch.basics.errors import UsageError
from pruneresearch.lab import compare, tables
from pruneresearch.lab.rows import Row, frame


def row(method="magnitude", seed=0, value=0.9, outcomes=None, weights=None, metric="accuracy", **changes):
    base = dict(
        id=f"{method}-{seed}",
        protocol="p",
        model="m",
        task="t",
        method=method,
        pattern="unstructured",
        allocation="layer",
        recovery="none",
        seed=seed,
        sparsity=0.5,
        achieved_weights=0.5,
        metric=metric,
        value=value,
        dense_value=0.95,
        outcomes=outcomes,
        outcome_weights=weights,
    )
    return Row(**base | changes)


def three(method, values, **changes):
    return [row(method, seed, value, **changes) for seed, value in enumerate(values)]


def from_outcomes(method, matrix, metric="accuracy", weights=None):
    means = [np.average(line, weights=weights) for line in matrix]
    return [
        row(method, seed, math.exp(mean) if metric == "perplexity" else mean, list(line), weights, metric)
        for seed, (line, mean) in enumerate(zip(matrix, means, strict=True))
    ]


CONTEST = (
    three("random", [0.5, 0.52, 0.49]) + three("magnitude", [0.80, 0.81, 0.79]) + three("wanda", [0.90, 0.912, 0.889])
)


# ---------------------------------------------------------------- intervals


def test_mean_interval_is_the_textbook_formula():
    values = [1.0, 2.0, 4.0]
    mean = 7 / 3
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / 2)
    half = 4.302652729911275 * deviation / math.sqrt(3)  # t quantile for two degrees of freedom, from a table
    assert compare.mean_interval(values) == pytest.approx((mean, mean - half, mean + half, 3))


def test_mean_interval_on_a_log_scale_and_with_one_value():
    geometric = compare.mean_interval([10, 40, 20], log=True)
    plain = compare.mean_interval(np.log([10, 40, 20]))
    assert (
        geometric.mean == pytest.approx(20)
        and geometric.low == pytest.approx(math.exp(plain.low))
        and geometric.low > 0
    )
    assert math.isnan(compare.mean_interval([3.0]).low) and compare.mean_interval([3.0]).mean == 3.0


def test_mean_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = [low <= 0 <= high for _, low, high, _ in (compare.mean_interval(rng.normal(size=3)) for _ in range(2000))]
    assert 0.93 < np.mean(hits) < 0.97


def test_bootstrap_has_the_distribution_that_enumeration_gives():
    differences, weights = np.array([[0.3, -1.0], [2.0, 0.7]]), np.array([1.0, 3.0])
    exact = {}
    for seeds in itertools.product(range(2), repeat=2):
        for items in itertools.product(range(2), repeat=2):
            value = sum(weights[i] * differences[s, i] for s in seeds for i in items) / (
                2 * sum(weights[i] for i in items)
            )
            exact[round(value, 9)] = exact.get(round(value, 9), 0) + 1 / 16
    drawn, counts = np.unique(
        np.round(compare.two_way_bootstrap(differences, weights, 40_000, seed=1), 9), return_counts=True
    )
    assert set(drawn) == set(exact)
    for value, count in zip(drawn, counts, strict=True):
        assert count / 40_000 == pytest.approx(exact[value], abs=0.01)


def test_bootstrap_matches_a_slow_loop_and_does_not_depend_on_chunks(monkeypatch):
    rng = np.random.default_rng(3)
    differences, weights = rng.normal(0.2, 1, (3, 30)), rng.integers(1, 5, 30).astype(float)
    slow = []
    for _ in range(6000):
        seeds, items = rng.integers(0, 3, 3), rng.integers(0, 30, 30)
        slow.append(np.mean([np.average(differences[s, items], weights=weights[items]) for s in seeds]))
    fast = compare.two_way_bootstrap(differences, weights, 6000)
    assert np.quantile(fast, [0.025, 0.5, 0.975]) == pytest.approx(np.quantile(slow, [0.025, 0.5, 0.975]), abs=0.03)


@pytest.mark.parametrize("sigma_seed, sigma_item", [(0.0, 0.0), (0.0, 1.0), (0.15, 1.0), (1.0, 1.0)])
def test_null_differences_are_rarely_called_separable(sigma_seed, sigma_item):
    rng, trials, hits = np.random.default_rng(5), 250, 0
    for trial in range(trials):
        d = sigma_seed * rng.normal(size=(3, 1)) + sigma_item * rng.normal(size=(1, 80)) + rng.normal(size=(3, 80))
        low, high = compare.hull_ends(d, np.ones(80), n_resamples=300, seed=trial)
        hits += low > 0 or high < 0
    assert hits / trials <= 0.09  # 5 % and three standard errors


def test_three_seeds_alone_fool_the_percentile_bootstrap_but_not_the_rule():
    rng, naive, ours = np.random.default_rng(6), 0, 0
    for trial in range(300):
        d = rng.normal(size=(3, 1))
        low, high = np.percentile(compare.two_way_bootstrap(d, np.ones(1), 6000, trial), [2.5, 97.5])
        assert (low, high) == pytest.approx((d.min(), d.max()))
        naive += low > 0 or high < 0
        low, high = compare.hull_ends(d, np.ones(1), n_resamples=300, seed=trial)
        ours += low > 0 or high < 0
    assert naive / 300 > 0.18 and ours / 300 < 0.09


# ---------------------------------------------------------------- paired differences


def test_paired_difference_knows_the_direction_of_the_metric():
    high, low = three("wanda", [0.90, 0.91, 0.905]), three("magnitude", [0.80, 0.81, 0.80])
    assert (
        compare.paired_difference(high, low).verdict == "better"
        and compare.paired_difference(low, high).verdict == "worse"
    )

    def as_perplexity(rows):
        return [replace(r, metric="perplexity", value=100 * r.value) for r in rows]

    d = compare.paired_difference(as_perplexity(high), as_perplexity(low))
    assert d.verdict == "worse" and d.unit == "relative"
    expected = np.exp(np.mean(np.log([90, 91, 90.5]) - np.log([80, 81, 80]))) - 1
    assert d.difference == pytest.approx(expected)


def test_paired_difference_is_antisymmetric_and_pairs_by_seed_not_by_order():
    rng = np.random.default_rng(0)
    a = from_outcomes("a", (rng.random((3, 200)) < 0.8).astype(int))
    b = from_outcomes("b", (rng.random((3, 200)) < 0.7).astype(int))
    forward, backward = compare.paired_difference(a, b, 500), compare.paired_difference(b, a, 500)
    assert (forward.difference, forward.low, forward.high) == pytest.approx(
        (-backward.difference, -backward.high, -backward.low)
    )
    assert compare.paired_difference(a[::-1], b, 500) == forward
    assert forward.n_seeds == 3 and forward.n_items == 200
    assert forward.difference == pytest.approx(np.mean([x["value"] - y["value"] for x, y in zip(a, b, strict=True)]))


def test_pairing_over_items_is_what_makes_small_differences_visible():
    rng = np.random.default_rng(1)
    base = (rng.random((1, 500)) < 0.7).astype(int).repeat(3, 0)
    better = base.copy()
    better[:, np.flatnonzero(base[0] == 0)[:20]] = 1  # 20 more items right, none more wrong
    d = compare.paired_difference(from_outcomes("a", better), from_outcomes("b", base))
    assert d.difference == pytest.approx(0.04) and d.verdict == "better"
    shuffled = better[:, rng.permutation(500)]  # the same accuracy on unrelated items
    assert compare.paired_difference(from_outcomes("a", shuffled), from_outcomes("b", base)).verdict == "not separable"


def test_weights_of_the_items_count():
    matrix, other = np.array([[1.0, 2.0], [1.1, 2.1], [0.9, 2.2]]), np.full((3, 2), 1.0)
    a, b = from_outcomes("a", matrix, "perplexity", [3, 1]), from_outcomes("b", other, "perplexity", [3, 1])
    assert compare.paired_difference(a, b).difference == pytest.approx(math.exp(np.mean((matrix @ [3, 1]) / 4 - 1)) - 1)


@pytest.mark.parametrize(
    "rows_a, rows_b",
    [
        (three("a", [0.9]), three("b", [0.1])),  # one seed
        (three("a", [0.9] * 3), three("b", [0.8] * 3)),  # seeds without spread and no items
        (three("a", [0.90, 0.91, 0.92]), three("b", [0.80, 0.81, 0.82])),  # equal differences, up to rounding
        (three("a", [0.9, 0.95, 0.99]), three("b", [0.80, 0.93, 0.98])),  # same sign three times, wide spread
    ],
)
def test_what_cannot_be_separated_is_said_so(rows_a, rows_b):
    assert compare.paired_difference(rows_a, rows_b).verdict == "not separable"


@pytest.mark.parametrize(
    "rows_a, rows_b, words",
    [
        ([], three("b", [0.5]), "one side has none"),
        ([row(seed=7)], three("b", [0.5, 0.6]), "no seed is common"),
        (three("a", [0.5]) * 2, three("b", [0.5]), "repeat a seed"),
        ([row("a", 0, 0.5, [1, 1])], [row("b", 0, 0.5, [0, 1])], "average to"),
        ([row("a", 0, 0.5, [1, 0])], [row("b", 0, 0.5, [0, 1, 1, 0])], "different numbers of test items"),
        ([row("a", protocol="p")], [row("b", protocol="q")], "2 protocols"),
    ],
)
def test_impossible_pairs_are_refused(rows_a, rows_b, words):
    with pytest.raises(UsageError, match=words):
        compare.paired_difference(rows_a, rows_b)


# ---------------------------------------------------------------- the rules of the contest


def test_protocols_must_agree_and_the_message_names_the_part():
    one, two = (
        row(protocol_parts={"length": 128, "split": "test"}),
        row(protocol="q", protocol_parts={"length": 512, "split": "test"}),
    )
    with pytest.raises(UsageError, match=r"length \(128 and 512\)") as error:
        compare.require_one_protocol([one, two])
    assert "split" not in str(error.value)
    with pytest.raises(UsageError, match="fingerprints p and q"):
        compare.require_one_protocol([row(), row(protocol="q")])
    assert compare.require_one_protocol([row(), row(seed=1)]) == "p"
    with pytest.raises(UsageError, match="no rows"):
        compare.require_one_protocol([])


def test_gate_refuses_another_dense_model_but_not_another_seed():
    assert compare.gate(CONTEST) == CONTEST
    compare.gate([row(seed=0, dense_value=0.95), row(seed=1, dense_value=0.93)])
    for stranger in (0.94, float("nan")):
        with pytest.raises(UsageError, match="wanda-0") as error:
            compare.gate([*CONTEST[:6], row("wanda", dense_value=stranger)])
        assert "magnitude" not in str(error.value)


def test_controls_must_be_there():
    compare.require_controls(CONTEST)
    for missing in compare.CONTROLS:
        with pytest.raises(UsageError, match=f"no {missing}"):
            compare.require_controls([r for r in CONTEST if r["method"] != missing])
    with pytest.raises(UsageError, match="sparsity 0.7"):
        compare.require_controls(CONTEST + [row("wanda", sparsity=0.7)])


@pytest.mark.parametrize("found, ranked", [(0.5, True), (0.501, True), (0.499, True), (0.5011, False), (0.4989, False)])
def test_matched_budget_is_a_tenth_of_a_percent(found, ranked):
    marked = compare.matched(CONTEST + [row("gradprobe", achieved_weights=found)])
    assert all(r["ranked"] and not r["reason"] for r in marked if r["method"] != "gradprobe")
    last = marked[-1]
    assert last["ranked"] is ranked and bool(last["reason"]) is not ranked
    assert not hasattr(CONTEST[0], "ranked")  # copies, the caller's rows are untouched


def test_budget_of_whole_units_is_what_magnitude_achieved():
    coarse = [row(m, achieved_weights=0.475) for m in ("random", "magnitude", "taylor")] + [
        row("exact", achieved_weights=0.5)
    ]
    assert [r["ranked"] for r in compare.matched(coarse)] == [True, True, True, False]
    assert not compare.matched([row("taylor", achieved_weights=0.475)])[0][
        "ranked"
    ]  # without magnitude the request counts


def test_values_that_are_not_finite_are_not_ranked():
    assert "not finite" in compare.matched([row(value=float("inf"), metric="perplexity")])[0]["reason"]


def test_budgets_of_different_kinds_are_different_contests():
    weights, units = CONTEST, [replace(r, budget="units", pattern="heads+neurons", achieved_units=0.5) for r in CONTEST]
    by_macs = [replace(r, budget="macs", achieved_macs=0.5, achieved_units=0.3, achieved_weights=0.4) for r in units]
    board = tables.leaderboard([*weights, *units, *by_macs], n_resamples=50)
    assert board.groupby("budget").size().to_dict() == {"macs": 3, "units": 3, "weights": 3} and board["ranked"].all()
    assert board["achieved"].tolist() == [0.5] * 9
    assert sorted(board["achieved_weights"]) == pytest.approx([0.4] * 3 + [0.5] * 6)
    shown = tables.as_markdown(board)
    assert shown.count("heads+neurons by MACs, no recovery") == 1 and shown.count("heads+neurons, no recovery") == 1


def test_contests_by_block_have_no_sparsity_and_are_kept():
    rows = [replace(r, sparsity=None, achieved_weights=0.3) for r in CONTEST]
    marked = compare.matched([*rows, row("gradprobe", sparsity=None, achieved_weights=0.31)])
    assert [r.ranked for r in marked] == [True] * 9 + [False]
    assert not compare.matched([row("taylor", sparsity=None)])[0].ranked  # nothing says what the budget is


def test_looking_after_each_seed_promises_too_much_and_a_fixed_number_does_not():
    rng, trials, fixed, peeking = np.random.default_rng(7), 400, 0, 0
    for _ in range(trials):
        values = rng.normal(size=10)
        looks = [compare.mean_interval(values[:n]) for n in range(3, 11)]
        apart = [look.low > 0 or look.high < 0 for look in looks]
        fixed, peeking = fixed + apart[len(compare.SEEDS) - 3], peeking + any(apart)
    assert fixed / trials < 0.08 and peeking / trials > 0.12


# ---------------------------------------------------------------- tables


def test_leaderboard_ranks_and_judges():
    board = tables.leaderboard(
        CONTEST + three("gradprobe", [0.94, 0.95, 0.94], achieved_weights=0.2), n_resamples=500
    ).set_index("method")
    assert board["rank"].dropna().to_dict() == {"wanda": 1, "magnitude": 2, "random": 3}
    assert board["rank"].isna()["gradprobe"] and "20.00 %" in board["reason"]["gradprobe"]
    assert board["verdict"].to_dict() == {
        "wanda": "better",
        "random": "worse",
        "magnitude": "reference",
        "gradprobe": "",
    }
    assert board["difference"]["wanda"] == pytest.approx(0.3003 / 3, abs=1e-3) and board["n_seeds"].eq(3).all()
    interval = compare.mean_interval([0.90, 0.912, 0.889])
    assert (board["value"]["wanda"], board["low"]["wanda"], board["high"]["wanda"]) == pytest.approx(interval[:3])


def test_leaderboard_ranks_low_perplexity_first():
    rows = [replace(r, metric="perplexity", value=100 * r.value) for r in CONTEST]
    assert tables.leaderboard(rows, n_resamples=100)["method"].tolist() == ["random", "magnitude", "wanda"]


def test_leaderboard_does_not_depend_on_the_order_of_rows():
    rows = [replace(r, sparsity=s, achieved_weights=s) for s in (0.3, 0.5) for r in CONTEST]
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    assert tables.leaderboard(rows, n_resamples=100).equals(tables.leaderboard(shuffled, n_resamples=100))


def test_leaderboard_does_not_rank_a_method_that_lacks_a_seed():
    board = tables.leaderboard([r for r in CONTEST if r["id"] != "wanda-1"], n_resamples=100).set_index("method")
    assert not board["ranked"]["wanda"] and "seeds [1]" in board["reason"]["wanda"] and board["rank"]["magnitude"] == 1


def test_leaderboard_averages_costs_in_its_units():
    rows = [replace(r, prune_seconds=1.0 + r.seed, prune_peak_bytes=3e6, latency_median_s=None) for r in CONTEST]
    line = tables.leaderboard(rows, n_resamples=100).iloc[0]
    assert line["prune_seconds"] == 2.0 and line["prune_peak_mb"] == 3.0 and np.isnan(line["latency_median_ms"])


def test_latency_is_compared_with_the_dense_model_beside_it():
    dense = {"macs": 100, "latency_median_s": 0.2}
    assert tables.latency_ratio(row(macs=50, latency_median_s=0.15, dense_costs=dense)) == pytest.approx(0.75)
    assert (
        tables.latency_ratio(row(macs=100, latency_median_s=0.5, dense_costs=dense)) == 1.0
    )  # the same work: the rest is noise
    for missing in ({"latency_median_s": None}, {"dense_costs": None}, {"dense_costs": {}}):
        timed = dict(macs=50, latency_median_s=0.15, dense_costs=dense)
        assert tables.latency_ratio(row(**timed | missing)) is None
    slow_and_quick = [
        replace(r, macs=50, latency_median_s=t, dense_costs={"macs": 100, "latency_median_s": 2 * t})
        for r, t in zip(CONTEST, (1, 9, 4) * 3, strict=True)
    ]
    assert (
        tables.leaderboard(slow_and_quick, n_resamples=100)["latency_ratio"] == 0.5
    ).all()  # the hour's load is in both


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda rows: rows[3:], "no random"),
        (lambda rows: rows + [row("wanda", 0)], "repeat a seed"),
        (lambda rows: rows + [row("wanda", 5, protocol="q")], "2 protocols"),
        (lambda rows: rows + [row("taylor", 0, dense_value=0.5)], "another dense"),
        (lambda rows: [], "no rows"),
        (lambda rows: [replace(r, metric="taste") for r in rows], "unknown metric"),
    ],
)
def test_leaderboard_refuses_what_the_rules_forbid(spoil, words):
    with pytest.raises(UsageError, match=words):
        tables.leaderboard(spoil(CONTEST), n_resamples=50)


def test_one_board_may_hold_several_tasks_with_their_own_protocols():
    both = CONTEST + [replace(r, task="u", protocol="q") for r in CONTEST]
    assert len(tables.leaderboard(both, n_resamples=50)) == 6


def test_markdown_shows_verdicts_budgets_and_the_best():
    rows = CONTEST + three("taylor", [0.81, 0.80, 0.80]) + three("gradprobe", [0.94, 0.95, 0.94], achieved_weights=0.2)
    rows += [replace(r, sparsity=0.7, achieved_weights=0.7) for r in CONTEST]
    lines = {
        line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]]
        for line in tables.as_markdown(tables.leaderboard(rows, n_resamples=200)).splitlines()
        if line.startswith("| ")
    }
    assert lines["method"] == ["50 %", "70 %"]
    assert lines["wanda"][0].startswith("**0.900 ±") and lines["wanda"][0].endswith("▲")
    assert lines["random"][0].endswith("▼") and lines["taylor"][0].endswith("≈") and lines["taylor"][1] == "–"
    assert lines["gradprobe"][0].startswith("(0.943 ±") and "20.0 %" in lines["gradprobe"][0]
    assert lines["magnitude"][0] == "0.800 ± 0.025"


def test_frame_leaves_out_the_outcomes_and_opens_dictionaries():
    table = frame([row(outcomes=[1], versions={"torch": "x"}, metrics={"f1": 0.5})])
    assert "outcomes" not in table and table["versions.torch"][0] == "x" and table["metrics.f1"][0] == 0.5


# ---------------------------------------------------------------- every pair, the shortlist, the front


def test_every_pair_is_compared_once_with_the_better_mean_first():
    pairs = tables.pairwise(CONTEST + three("gradprobe", [0.94, 0.95, 0.94], achieved_weights=0.2), n_resamples=200)
    assert list(zip(pairs["method"], pairs["against"], strict=True)) == [
        ("wanda", "magnitude"),
        ("wanda", "random"),
        ("magnitude", "random"),
    ]  # gradprobe missed the budget
    by_method = {name: [r for r in CONTEST if r["method"] == name] for name in ("wanda", "magnitude", "random")}
    for _, line in pairs.iterrows():
        assert compare.paired_difference(by_method[line["method"]], by_method[line["against"]], n_resamples=200)[
            :4
        ] == tuple(line[["difference", "low", "high", "verdict"]])
        assert compare.paired_difference(
            by_method[line["against"]], by_method[line["method"]], n_resamples=200
        ).difference == pytest.approx(-line["difference"])


def test_pairs_of_perplexities_put_the_lower_one_first():
    rows = [replace(r, metric="perplexity", value=100 * r.value) for r in CONTEST]
    assert tables.pairwise(rows, n_resamples=100)["method"].tolist() == ["random", "random", "magnitude"]


def test_a_method_with_a_wide_interval_is_not_as_good_as_the_best():

    def timed(rows, seconds):
        return [replace(r, prune_seconds=seconds, recovery_seconds=1.0) for r in rows]

    noisy = timed(three("lucky", [0.60, 0.98, 0.97]), 0.1)  # not separable from wanda, and could lose much
    close = timed(three("close", [0.895, 0.907, 0.884]), 0.5)  # half a point below wanda with every seed
    slow = timed(three("slow", [0.896, 0.908, 0.885]), 9.0)
    rows = timed(CONTEST, 3.0) + noisy + close + slow
    assert compare.paired_difference(timed(CONTEST[6:], 3.0), noisy).verdict == "not separable"
    line = tables.shortlist(rows, margin=0.01).iloc[0]
    assert (
        line["best"] == "wanda"
        and line["as good"] == "slow, close"
        and line["cheapest"] == "close"
        and line["its seconds"] == 1.5
    )
    assert (
        line["ids"] == "close-0 close-1 close-2"
        and line["best ids"] == "wanda-0 wanda-1 wanda-2"
        and line["dense"] == pytest.approx(0.95)
    )
    assert tables.shortlist(rows, margin=0.001).iloc[0]["as good"] == ""


@pytest.mark.parametrize(
    "metric, worse, best, loss", [("accuracy", 0.80, 0.90, 0.10), ("perplexity", 33.0, 30.0, 0.10)]
)
def test_could_lose_is_the_far_end_of_the_interval(metric, worse, best, loss):
    a, b = (three(name, [value] * 3, metric=metric) for name, value in (("a", worse), ("b", best)))
    assert tables.could_lose(a, b) == pytest.approx(loss) and tables.could_lose(b, a) == 0
    spread = three("a", [worse * 0.9, worse, worse * 1.1], metric=metric)
    found = compare.paired_difference(spread, b)
    assert (
        tables.could_lose(spread, b) == pytest.approx(-found.low if metric == "accuracy" else found.high)
        and tables.could_lose(spread, b) > loss
    )


@pytest.mark.parametrize("metric", ["accuracy", "perplexity"])
def test_the_front_is_what_a_slow_loop_finds(metric):
    import pandas as pd

    rng = np.random.default_rng(4)
    board = pd.DataFrame(
        dict(
            model="m",
            task=rng.choice(["t", "u"], 60),
            metric=metric,
            ranked=rng.random(60) > 0.2,
            value=rng.integers(1, 12, 60) / 12,
            mmacs=rng.integers(1, 9, 60).astype(float),
        )
    )
    board.loc[3, "mmacs"] = np.nan
    sign = 1 if metric == "accuracy" else -1

    def beaten(a):
        others = board[board["ranked"] & (board["task"] == a["task"]) & board["mmacs"].notna()]
        return any(
            sign * b["value"] >= sign * a["value"]
            and b["mmacs"] <= a["mmacs"]
            and (b["value"] != a["value"] or b["mmacs"] != a["mmacs"])
            for _, b in others.iterrows()
        )

    wanted = {
        (a["task"], a["mmacs"], a["value"])
        for _, a in board.iterrows()
        if a["ranked"] and np.isfinite(a["mmacs"]) and not beaten(a)
    }
    front = tables.pareto(board, "mmacs")
    assert {(a["task"], a["mmacs"], a["value"]) for _, a in front.iterrows()} == wanted and len(front) == len(wanted)


def test_numbers_lead_to_their_rows():
    board = tables.leaderboard(CONTEST, n_resamples=50)
    assert board.set_index("method")["ids"]["wanda"] == "wanda-0 wanda-1 wanda-2"
    page = tables.as_markdown(board, page="rows.ipynb")
    assert (
        "](rows.ipynb#row-wanda-0)" in page
        and "](rows.ipynb#row-magnitude-0)" in page
        and "](" not in tables.as_markdown(board)
    )


def test_seconds_that_hardly_differ_do_not_choose():
    close = three("close", [0.899, 0.911, 0.888])

    def choice(seconds):
        return tables.shortlist(
            [
                replace(r, prune_seconds=10.0 if r.method == "wanda" else seconds, recovery_seconds=0.0)
                for r in CONTEST + close
            ],
            n_resamples=100,
        ).iloc[0]["cheapest"]

    assert choice(8.1) == "wanda" and choice(7.9) == "close"


def test_methods_that_are_good_everywhere_come_before_those_that_win_once():
    import pandas as pd

    short = pd.DataFrame({"best": ["a", "b", "b"], "as good": ["c", "c, a", ""]})
    assert tables.most_often_good(short) == ["b", "a", "c"]
    assert tables.most_often_good(pd.DataFrame({"best": ["a", "b"], "as good": ["c", "c"]}))[0] == "c"


def test_a_tie_is_told_as_one():
    import pandas as pd

    def leaders(best, good):
        return tables.leaders(pd.DataFrame({"best": best, "as good": good}))

    assert leaders(["a", "b"], ["", ""]) == ["a", "b"]  # one each
    assert leaders(["a", "b"], ["b", ""]) == ["b"]  # b is good twice
    assert leaders(["a", "b", "b"], ["", "a", ""]) == ["b"]  # both are good twice, b is best twice
    assert leaders(["a"], ["b"]) == ["a"]


def test_a_shortlist_says_how_its_winner_stands_against_magnitude():
    def line(rows):
        return tables.shortlist([replace(r, prune_seconds=1.0, recovery_seconds=0.0) for r in rows], n_resamples=100)

    lucky = three("lucky", [0.60, 0.99, 0.98])
    assert line(CONTEST)["verdict"].item() == "better" and line(CONTEST[:6])["verdict"].item() == "reference"
    assert line(CONTEST[:6] + lucky)[["best", "verdict"]].iloc[0].tolist() == ["lucky", "not separable"]
    assert line(CONTEST[:3] + lucky)["verdict"].item() == ""  # nothing to compare with
    assert "lucky, accuracy 0.857\u00a0≈" in tables.shortlist_markdown(
        line(CONTEST[:6] + lucky)
    ) and "accuracy 0.900\u00a0▲" in tables.shortlist_markdown(line(CONTEST))
