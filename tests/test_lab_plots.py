"What the figures draw is compared with the numbers behind it; what they must not draw is refused."

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from matplotlib.text import Text

from pruneresearch.basics.errors import UsageError
from pruneresearch.lab import plots
from pruneresearch.lab.compare import mean_interval
from pruneresearch.lab.rows import Row, saved_rows
from pruneresearch.lab.tables import leaderboard, pairwise, pareto

SKILL = {"random": -3.0, "magnitude": 0.0, "wanda": 0.3, "taylor": 0.001}


def rows_of(metric="accuracy", task="t", **changes):
    out = []
    for method, skill in SKILL.items():
        for sparsity in (0.3, 0.5, 0.7):
            for seed in range(3):
                jitter = 0.01 * np.sin(7 * seed + 3 * len(method) + 10 * sparsity)
                value = (
                    0.9 + 0.1 * (skill * sparsity) + jitter
                    if metric == "accuracy"
                    else float(30 * np.exp(sparsity * (1 - skill) + jitter))
                )
                row = Row(
                    id=f"{method}-{sparsity}-{seed}",
                    protocol=f"p-{task}",
                    model="m",
                    task=task,
                    method=method,
                    pattern="unstructured",
                    allocation="layer",
                    recovery="none",
                    seed=seed,
                    sparsity=sparsity,
                    achieved_weights=sparsity,
                    metric=metric,
                    value=value,
                    dense_value=0.95 if metric == "accuracy" else 28.0,
                    prune_seconds=1.0 + sparsity,
                )
                out.append(replace(row, **changes))
    return out


ROWS = rows_of()


def points(axis):
    "(x, y, low, high, filled) of every error bar on an axis."
    found = []
    for container in axis.containers:
        line, _, bars = container
        (x,), (y,) = line.get_data()
        ends = bars[0].get_segments()[0] if bars else np.full((2, 2), np.nan)
        found.append((x, y, *np.sort(ends[:, 1]), to_rgb(line.get_markerfacecolor()) != (1, 1, 1)))
    return np.array(found, dtype=float)


def contrast(colour):
    "Contrast ratio against white (WCAG)."
    channel = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 1.05 / (np.dot(channel, [0.2126, 0.7152, 0.0722]) + 0.05)


# ---------------------------------------------------------------- style


def test_looks_are_distinct_stable_and_visible_on_white():
    names = ["random", *plots.METHOD_ORDER, "one of mine", "dense"]
    looks = plots.method_styles(names)
    assert set(looks) == set(names)
    assert len({(to_rgb(s["color"]), s["marker"]) for s in looks.values()}) == len(names)
    assert all(contrast(s["color"]) > 2.2 for s in looks.values())
    assert plots.method_styles(["wanda"])["wanda"] == looks["wanda"]
    assert plots.method_styles(["wanda", "aaa"])["wanda"] == looks["wanda"]


def test_every_method_of_the_library_and_of_the_figures_has_a_fixed_look():
    from pruneresearch.pruning.registry import load_methods

    root = Path(__file__).parent.parent
    ours = {name for name, method in load_methods().items() if method.module.startswith("pruneresearch.")}
    drawn = {row.method for path in (root / "figures").rglob("*.json.gz") for row in saved_rows(path)}
    assert len(ours) > 5 and not (ours | drawn) - {*plots.METHOD_ORDER, "random"}


def test_style_ends_with_its_block():
    import matplotlib

    before = matplotlib.rcParams["axes.spines.top"]
    with plots.style():
        assert matplotlib.rcParams["axes.spines.top"] is False
    assert matplotlib.rcParams["axes.spines.top"] == before


# ---------------------------------------------------------------- quality


@pytest.mark.parametrize("metric", ["accuracy", "perplexity"])
def test_points_and_bars_are_means_and_intervals(metric):
    rows = rows_of(metric)
    axis = plots.quality_against_sparsity(rows, focus=False).axes[0]
    drawn = points(axis)
    assert len(drawn) == 12 and axis.get_yscale() == ("log" if metric == "perplexity" else "linear")
    for method in SKILL:
        for sparsity in (0.3, 0.5, 0.7):
            interval = mean_interval(
                [r["value"] for r in rows if (r["method"], r["sparsity"]) == (method, sparsity)],
                log=metric == "perplexity",
            )
            near = drawn[np.argmin(abs(drawn[:, 1] - interval.mean) + abs(drawn[:, 0] - 100 * sparsity) * 1e-6)]
            assert near[1:4] == pytest.approx(interval[:3], rel=1e-6) and abs(near[0] - 100 * sparsity) < 10


def test_methods_stand_beside_each_other():
    drawn = points(plots.quality_against_sparsity(ROWS).axes[0])
    assert len(np.unique(np.round(drawn[:, 0], 6))) == 12


def test_dense_band_is_the_interval_of_its_seeds():
    rows = [replace(row, dense_value=0.95 + 0.01 * row.seed) for row in ROWS]
    axis = plots.quality_against_sparsity(rows).axes[0]
    interval = mean_interval([0.95, 0.96, 0.97])
    band = axis.patches[0].get_extents().transformed(axis.transData.inverted())
    assert (band.y0, band.y1) == pytest.approx((interval.low, interval.high))
    assert not plots.quality_against_sparsity(ROWS).axes[0].patches  # equal seeds have no band


def test_runs_outside_the_budget_are_hollow_and_stand_where_they_ended():
    wanda = [row for row in ROWS if row.method == "wanda" and row.sparsity == 0.5]
    stray = [replace(row, method="gradprobe", achieved_weights=0.1) for row in wanda]
    drawn = points(plots.quality_against_sparsity(ROWS + stray).axes[0])
    hollow = drawn[drawn[:, 4] == 0]
    assert len(hollow) == 1 and abs(hollow[0, 0] - 10) < 6


def test_random_does_not_decide_the_axis_unless_asked():
    def limits(**options):
        return plots.quality_against_sparsity(ROWS, **options).axes[0].get_ylim()

    worst = min(r["value"] for r in ROWS if r["method"] == "random")
    assert limits()[0] > worst > limits(focus=False)[0]


def test_every_task_has_its_panel_and_axes_have_units():
    figure = plots.quality_against_sparsity(ROWS + rows_of("perplexity", "u"))
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["t, unstructured", "u, unstructured"]
    assert [axis.get_ylabel() for axis in figure.axes] == [
        "accuracy (higher is better)",
        "perplexity (lower is better)",
    ]
    assert all("%" in axis.get_xlabel() for axis in figure.axes)
    assert all(words in " ".join(figure.get_supxlabel().split()) for words in ("95 % t-interval", "3 seeds"))
    for axis in figure.axes:  # methods are named at their lines
        assert {text.get_text(): text.get_color() for text in axis.texts} == {
            name: look["color"] for name, look in plots.method_styles(SKILL).items()
        }


def test_a_single_seed_and_an_infinite_value_can_be_drawn():
    assert np.isnan(points(plots.quality_against_sparsity([r for r in ROWS if r["seed"] == 0]).axes[0])[:, 2]).all()
    diverged = [
        replace(row, value=float("inf")) if row.method == "taylor" and row.sparsity == 0.7 else row
        for row in rows_of("perplexity")
    ]
    assert len(points(plots.quality_against_sparsity(diverged).axes[0])) == 11


def test_with_one_sparsity_methods_stand_at_their_names():
    wanda = [row for row in ROWS if row.method == "wanda" and row.sparsity == 0.5]
    stray = [replace(row, method="gradprobe", achieved_weights=0.1) for row in wanda]
    [axis] = plots.quality_against_sparsity([r for r in ROWS if r["sparsity"] == 0.5] + stray, focus=False).axes
    names = [label.get_text() for label in axis.get_xticklabels()]
    assert names == ["random", "magnitude", "wanda", "taylor", "gradprobe (10 %)"] and axis.get_xlabel().endswith(
        ": 50 %"
    )
    drawn = {names[int(x)]: (y, filled) for x, y, _, _, filled in points(axis)}
    for method in SKILL:
        assert drawn[method] == (
            pytest.approx(np.mean([r["value"] for r in ROWS if (r["method"], r["sparsity"]) == (method, 0.5)])),
            1,
        )
    assert drawn["gradprobe (10 %)"][1] == 0
    none_asked = [replace(row, sparsity=None) for row in ROWS if row.sparsity == 0.5]
    assert not plots.one_sparsity({("m",): none_asked}) and not plots.one_sparsity({("m",): ROWS})


@pytest.mark.parametrize(
    "metric, values, expected",
    [
        ("accuracy", (0.8, 1.0, 1.0), (None, 1)),
        ("accuracy", (0.0, 0.3, 0.0), (0, None)),
        ("matthews", (-0.9, -0.5, -0.99), (-1, None)),
        ("loss", (0.0, 3.0, 1.0), (None, None)),
        ("perplexity", (2.0, 30.0, 4.0), (None, None)),
    ],
)
def test_no_interval_is_drawn_where_no_value_can_be(metric, values, expected):
    rows = [
        replace(ROWS[0], id=str(seed), method="wanda", metric=metric, seed=seed, value=value, dense_value=value)
        for seed, value in enumerate(values)
    ]
    interval = mean_interval(values, log=metric == "perplexity")
    figure = plots.quality_against_sparsity(rows, focus=False)
    ends = [whole if end is None else end for whole, end in zip(interval[1:3], expected, strict=True)]
    assert points(figure.axes[0])[0, 2:4] == pytest.approx(ends) and plots.possible(interval, metric) == pytest.approx(
        ends
    )
    band = figure.axes[0].patches[0].get_extents().transformed(figure.axes[0].transData.inverted())
    assert (band.y0, band.y1) == pytest.approx(ends)


@pytest.mark.parametrize(
    "rows, words",
    [
        ([], "no rows"),
        (ROWS + rows_of(protocol="q"), "2 protocols"),
        (ROWS + rows_of(dense_value=0.5)[:1], "another dense"),
    ],
)
def test_what_cannot_be_compared_is_not_drawn(rows, words):
    with pytest.raises(UsageError, match=words):
        plots.quality_against_sparsity(rows)


@pytest.mark.parametrize("focus", [True, False])
def test_names_at_lines_do_not_cover_each_other(focus):
    figure = plots.quality_against_sparsity(ROWS, focus=focus)
    boxes = [Text.get_window_extent(text) for text in figure.axes[0].texts]  # without the line to the point
    assert len(boxes) == 4 and not any(a.y0 < b.y1 and b.y0 < a.y1 for i, a in enumerate(boxes) for b in boxes[:i])


def test_labels_are_moved_apart_as_little_as_their_order_allows():
    heights = np.random.default_rng(0).random(9)
    places = plots._apart(heights, gap=0.08)
    assert (np.argsort(places) == np.argsort(heights)).all() and places.min() >= 0 and places.max() <= 1
    assert np.diff(np.sort(places)).min() > 0.08 - 1e-9
    assert plots._apart([0.2, 0.9], gap=0.1) == pytest.approx([0.2, 0.9])  # who is not crowded stays


# ---------------------------------------------------------------- the overview


@pytest.mark.parametrize("metric", ["accuracy", "perplexity"])
def test_the_overview_has_a_line_per_method_at_the_highest_sparsity(metric):
    board = leaderboard(rows_of(metric), n_resamples=50)
    [axis] = plots.overview(board).axes
    lines = board[board["sparsity"] == 0.7].set_index("method")
    names = [label.get_text() for label in axis.get_yticklabels()]
    assert names == list(lines.sort_values("rank").index) and axis.get_xlabel() == plots.arrow(metric)
    assert axis.get_xscale() == ("log" if metric == "perplexity" else "linear")
    drawn = {names[round(c[0].get_ydata()[0])]: c for c in axis.containers}
    for name, container in drawn.items():
        assert container[0].get_xdata()[0] == lines.loc[name, "value"]
        ends = np.sort(container[2][0].get_segments()[0][:, 0])
        assert ends == pytest.approx(lines.loc[name, ["low", "high"]].to_numpy(dtype=float))
        assert container[0].get_color() == plots.VERDICT_MARKS[lines.loc[name, "verdict"]]["color"]
    beyond = set(names) - set(drawn)
    low, high = axis.get_xlim()
    assert beyond == {name for name in names if not low <= lines.loc[name, "value"] <= high} == {"random"}
    numbers = [text.get_text() for text in axis.texts]
    assert len(numbers) == len(names) and all(number.split()[0] for number in numbers)


def test_the_overview_leaves_the_unranked_hollow_and_says_what_they_achieved():
    wanda = [row for row in ROWS if row.method == "wanda" and row.sparsity == 0.7]
    board = leaderboard(
        ROWS + [replace(row, method="gradprobe", achieved_weights=0.1) for row in wanda], n_resamples=50
    )
    [axis] = plots.overview(board).axes
    names = [label.get_text() for label in axis.get_yticklabels()]
    hollow = [names[round(c[0].get_ydata()[0])] for c in axis.containers if c[0].get_markerfacecolor() == "white"]
    assert hollow == ["gradprobe"] and axis.texts[names.index("gradprobe")].get_text().endswith("; 10 % removed")


def test_the_overview_has_a_panel_per_question_and_nothing_covers_anything():
    rows = ROWS + rows_of("perplexity", "u") + rows_of(task="v", pattern="2:4")[:24]
    figure = plots.overview(leaderboard(rows, n_resamples=50))
    assert len(figure.axes) == 3
    for axis in figure.axes:
        boxes = [text.get_window_extent() for text in [*axis.texts, *axis.get_yticklabels()]]
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    titles = [axis.title.get_window_extent() for axis in figure.axes]
    spans = [axis.get_tightbbox() for axis in figure.axes]
    assert not any(a.overlaps(b) for i, a in enumerate(spans) for b in spans[:i]) and len(titles) == 3
    with pytest.raises(UsageError, match="board is empty"):
        plots.overview(leaderboard(ROWS, n_resamples=10)[:0])


# ---------------------------------------------------------------- masks


def test_mask_picture_shows_the_mask():
    import torch

    mask = torch.rand(6, 9) > 0.4
    axis = plots.mask_picture({"q": mask}).axes[0]
    assert (
        np.array_equal(axis.images[0].get_array(), mask.numpy())
        and axis.get_title(loc="left") == f"q: {100 * (~mask).float().mean():.1f} % removed"
    )
    weight = torch.nn.Parameter(torch.randn(6, 9) * mask)
    assert np.array_equal(plots.mask_picture(weight).axes[0].images[0].get_array(), mask.numpy())


def test_tiles_average_without_losing_a_row():
    keep = np.random.default_rng(0).random((10, 7)) < 0.5
    slow = np.array([[keep[r : r + 3, c : c + 2].mean() for c in range(0, 7, 2)] for r in range(0, 10, 3)])
    assert plots.tiles(keep, limit=4) == pytest.approx(slow)


@pytest.mark.parametrize("bad, words", [(np.ones(3), "1 dimensions"), ({}, "no mask")])
def test_mask_picture_refuses(bad, words):
    with pytest.raises(UsageError, match=words):
        plots.mask_picture(bad)


# ---------------------------------------------------------------- differences and costs


def test_difference_plot_draws_the_board_and_leaves_the_unseparable_hollow():
    board = leaderboard(ROWS, n_resamples=300)
    axis = plots.difference_plot(board).axes[0]
    shown = board[board["method"].isin(["wanda", "taylor"])]
    assert sorted(c[0].get_xdata()[0] for c in axis.containers) == pytest.approx(sorted(shown["difference"]))
    hollow = [to_rgb(c[0].get_markerfacecolor()) == (1, 1, 1) for c in axis.containers]
    assert sum(hollow) == (shown["verdict"] == "not separable").sum() and 0 < sum(hollow) < len(hollow)
    assert len(plots.difference_plot(board, without=()).axes[0].containers) == 9
    with pytest.raises(UsageError, match="no difference"):
        plots.difference_plot(board[board["method"] == "magnitude"])


def test_relative_differences_are_ratios_on_a_logarithmic_axis():
    board = leaderboard(rows_of("perplexity"), n_resamples=100)
    axis = plots.difference_plot(board).axes[0]
    assert axis.get_xlabel() == "perplexity ÷ magnitude's (lower is better)" and axis.get_xscale() == "log"
    assert max(c[0].get_xdata()[0] for c in axis.containers) == pytest.approx(
        1 + board[board["method"] != "random"]["difference"].max()
    )


def test_each_difference_stands_at_its_method():
    board = leaderboard(ROWS, n_resamples=50)
    axis = plots.difference_plot(board).axes[0]
    names = {y: label.get_text() for y, label in zip(axis.get_yticks(), axis.get_yticklabels(), strict=True)}
    shown = {
        (line["method"], round(line["difference"], 9))
        for _, line in board[board["method"].isin(["wanda", "taylor"])].iterrows()
    }
    assert {(names[c[0].get_ydata()[0]], round(c[0].get_xdata()[0], 9)) for c in axis.containers} == shown
    assert len(names) == len(shown) + board["sparsity"].nunique()  # a heading per sparsity


def test_cost_plot_draws_cost_and_value():
    board = leaderboard(ROWS, n_resamples=50)
    axis = plots.cost_plot(board, 0.5).axes[0]
    assert {round(c[0].get_xdata()[0], 9) for c in axis.containers} == {1.5} and "(s)" in axis.get_xlabel()
    for bad, words in (
        (dict(sparsity=0.9), "no ranked line"),
        (dict(sparsity=0.5, cost="macs"), "unknown cost"),
        (dict(sparsity=0.5, cost="mmacs"), "no ranked line"),
    ):
        with pytest.raises(UsageError, match=words):
            plots.cost_plot(board, **bad)


# ---------------------------------------------------------------- files


def test_figures_are_saved_with_their_rows_the_same_each_time(tmp_path):
    rows = [replace(row, outcomes=[1, 0]) for row in ROWS]
    paths = plots.save_figure(plots.quality_against_sparsity(ROWS), tmp_path / "deep" / "figure.png", rows)
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["figure.csv", "figure.png", "figure.svg"]
    again = plots.save_figure(plots.quality_against_sparsity(ROWS), tmp_path / "again", rows)
    assert [p.read_bytes() for p in paths] == [p.read_bytes() for p in again]
    table = pd.read_csv(paths[2])
    assert (
        len(table) == len(ROWS)
        and "outcomes" not in table
        and table["value"].to_numpy() == pytest.approx([r["value"] for r in ROWS])
    )


def test_the_background_is_solid_white(tmp_path):
    png = plots.save_figure(plots.quality_against_sparsity(ROWS), tmp_path / "figure", ROWS)[0]
    pixels = imread(png)
    assert (
        (pixels[0, 0] == 1).all() and (pixels[..., 3] == 1).all()
        if pixels.shape[-1] == 4
        else (pixels[0, 0] == 1).all()
    )


def test_a_failed_save_leaves_nothing(tmp_path, monkeypatch):
    figure = plots.quality_against_sparsity(ROWS)
    monkeypatch.setattr(figure, "savefig", lambda *a, **k: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError):
        plots.save_figure(figure, tmp_path / "figure", ROWS)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError, match="'.pdf'"):
        plots.save_figure(figure, tmp_path / "figure.pdf", ROWS)


def test_no_axis_of_a_score_goes_beyond_one_and_a_budget_of_work_is_named():
    "A t-interval over three seeds may end where no accuracy can be; a share of MACs is not a sparsity of weights."
    wide = [
        replace(
            row,
            value=row.value + (0.1 if row.seed else -0.2),
            pattern="heads+neurons",
            budget=budget,
            achieved_units=row.sparsity,
            achieved_macs=row.sparsity,
        )
        for row in ROWS
        for budget in ("units", "macs")
    ]
    own = [row.value for row in wide if (row.method, row.sparsity, row.budget) == ("wanda", 0.3, "units")]
    assert max(mean_interval(own)) > 1.2
    figure = plots.quality_against_sparsity(wide, focus=False)
    assert len(figure.axes) == 2 and all(axis.get_ylim()[1] == 1.02 for axis in figure.axes)
    assert [axis.get_xlabel() for axis in figure.axes] == [
        "sparsity of the weights in scope (%)",
        "share of MACs that went (%)",
    ]


def test_the_matrix_shows_every_verdict_from_both_sides():
    pairs = pairwise([r for r in ROWS if r["sparsity"] == 0.5], n_resamples=100)
    [axis] = plots.separability_plot(pairs).axes
    order = [label.get_text() for label in axis.get_yticklabels()]
    assert order == [label.get_text() for label in axis.get_xticklabels()] and order[-1] == "random"
    marks = {
        (order[round(text.get_position()[1])], order[round(text.get_position()[0])]): text.get_text()
        for text in axis.texts
    }
    assert len(marks) == len(axis.patches) == len(SKILL) * (len(SKILL) - 1)
    for _, line in pairs.iterrows():
        assert (
            marks[line["method"], line["against"]]
            == {"better": "▲", "worse": "▼", "not separable": "≈"}[line["verdict"]]
        )
        assert {marks[line["method"], line["against"]], marks[line["against"], line["method"]]} in ({"▲", "▼"}, {"≈"})
    assert "▲" in marks.values()
    with pytest.raises(UsageError, match="no pairs"):
        plots.separability_plot(pairs[:0])


@pytest.mark.parametrize("metric", ["accuracy", "perplexity"])
def test_pareto_plot_names_the_front_and_labels_its_axes(metric):
    board = leaderboard(
        [replace(row, macs=1e6 * (1 - row.sparsity) + 1e5 * len(row.method)) for row in rows_of(metric)], n_resamples=50
    )
    figure = plots.pareto_plot(board, "mmacs")
    [axis] = figure.axes
    front = pareto(board, "mmacs")
    names, *numbers = [text.get_text() for text in axis.texts]
    assert (
        names.splitlines()
        == [f"{i}  {line['method']}, {100 * line['achieved']:.0f} %" for i, (_, line) in enumerate(front.iterrows(), 1)]
        and len(front) > 1
    )
    assert numbers == [str(i + 1) for i in range(len(front))]
    assert axis.get_xlabel() == plots.COST_LABELS["mmacs"] and axis.get_ylabel() == plots.arrow(metric)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axis.texts[1:]]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert any(
        label.get_text() for label in axis.get_yticklabels(which="both") if label.get_visible()
    )  # a logarithmic axis keeps its numbers
    with pytest.raises(UsageError, match="no ranked line"):
        plots.pareto_plot(board.assign(mmacs=np.nan), "mmacs")
    with pytest.raises(UsageError, match="unknown cost"):
        plots.pareto_plot(board, "money")


def test_a_front_over_work_leaves_out_what_does_the_same_work():
    dense = {"macs": 7e6, "latency_median_s": 0.01}
    same = [
        replace(row, macs=7e6, latency_median_s=0.01 + 0.001 * i, dense_costs=dense)
        for i, row in enumerate(rows_of(task="same"))
    ]
    dense = {"macs": 2e6, "latency_median_s": 0.02}
    units = [
        replace(
            row,
            macs=1e6 * (2 - row.sparsity),
            latency_median_s=0.01 * (2 - row.sparsity) + 1e-5 * i,
            dense_costs=dense,
        )
        for i, row in enumerate(rows_of())
    ]
    board = leaderboard(same + units, n_resamples=50)
    for cost in plots.WORK:
        figure = plots.pareto_plot(board, cost)
        assert [axis.get_title(loc="left") for axis in figure.axes] == ["t"] and "Not drawn: 1 of 2 tasks" in " ".join(
            figure.get_supxlabel().split()
        )
    assert len(plots.pareto_plot(board.assign(sparse_mb=1.0), "sparse_mb").axes) == 2
    with pytest.raises(UsageError, match="same multiplications"):
        plots.pareto_plot(leaderboard(same, n_resamples=50), "latency_median_ms")
    assert (
        len(plots.pareto_plot(board.assign(mmacs=np.nan), "latency_median_ms").axes) == 2
    )  # unknown work is not equal work


@pytest.mark.parametrize("metric", ["accuracy", "perplexity"])
def test_latency_noise_puts_no_second_line_of_equal_work_on_the_front(metric):
    rows = [
        replace(row, macs=1e6 * (2 - row.sparsity), latency_median_s=0.01 * (2 - row.sparsity) - 1e-4 * i)
        for i, row in enumerate(rows_of(metric))
    ]
    lines = leaderboard(rows, n_resamples=50)
    best = plots.best_of_same_work(lines)
    assert len(best) == 3 and all(
        line["value"] == (max if metric == "accuracy" else min)(lines[lines["sparsity"] == line["sparsity"]]["value"])
        for _, line in best.iterrows()
    )
    assert len(pareto(lines, "latency_median_ms")) > len(pareto(best, "latency_median_ms"))
