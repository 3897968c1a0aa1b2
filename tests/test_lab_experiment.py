"Rows: whole or absent, found again, gated; benchmarks: one failure loses nothing, resumption."

import json
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import nbformat
import pytest

from pruneresearch.basics.errors import RunError, UsageError
from pruneresearch.basics.fingerprints import fingerprint
from pruneresearch.cli.main import main
from pruneresearch.lab.bench import bench, rows_of
from pruneresearch.lab.experiment import Config, check, config_of, dense_start, row_id, run, run_all
from pruneresearch.lab.rows import budget_of, load_rows, row_from, save_rows, saved_rows, units_gone
from pruneresearch.lab.runs import list_benchmarks, parameters_of, plan, profiles_of
from pruneresearch.lab.tables import leaderboard
from pruneresearch.pruning.registry import METHODS, weight_score
from pruneresearch.pruning.request import Request, asked

DIGITS = dict(model="mlp", task="digits", sparsity=0.75)


def test_a_row_is_found_again_and_says_where_it_comes_from(tmp_path):
    config = Config(method="wanda", **DIGITS)
    row = run(config, tmp_path)
    assert run(config, tmp_path) == row and load_rows(tmp_path) == [row]
    assert row["achieved"] == 0.75 and 0 < row["sparsity_all"] < 0.75
    assert row["value"] == pytest.approx(sum(row["outcomes"]) / len(row["outcomes"])) and len(row["outcomes"]) == 360
    for key in ("data", "split", "join", "tokenizer", "length", "dtype", "scope", "versions", "model"):
        assert key in row["protocol_parts"], key
    for key in (
        "calibration",
        "commit",
        "prune_seconds",
        "prune_peak_bytes",
        "recovery_seconds",
        "bytes_dense",
        "bytes_sparse",
        "macs",
        "latency_median_s",
        "latency_iqr_s",
    ):
        assert row[key] is not None, key


def test_a_perceptron_trains_from_random_weights_for_as_long_as_asked(tmp_path):
    dense = {
        (epochs, seed): dense_start(Config(method="magnitude", **DIGITS, dense_epochs=epochs, seed=seed), tmp_path)
        for epochs, seed in ((0, 0), (2, 0), (6, 0), (2, 1))
    }
    accuracy = {key: start.metrics["accuracy"] for key, start in dense.items()}
    assert accuracy[0, 0] < 0.3 < accuracy[2, 0] < accuracy[6, 0] and accuracy[2, 0] != accuracy[2, 1]
    assert (
        accuracy[6, 0] != dense_start(Config(method="magnitude", **DIGITS), tmp_path).metrics["accuracy"]
    )  # the embedded one, as it is
    again = dense_start(Config(method="wanda", **DIGITS, dense_epochs=6), tmp_path)
    assert all((a == b).all() for a, b in zip(again.model.parameters(), dense[6, 0].model.parameters(), strict=True))


def test_a_language_model_trains_on_for_as_long_as_asked(tmp_path):
    (tmp_path / "little.txt").write_text(
        "\n\n".join(f"The cat number {i} sat on the mat, and the dog lay by the door. " * 20 for i in range(30))
    )
    text = dict(
        model="tiny-llama",
        task=str(tmp_path / "little.txt"),
        method="magnitude",
        sparsity=0.5,
        n_calibration=8,
        length=32,
    )
    perplexity = {
        epochs: dense_start(Config(**text, dense_epochs=epochs), tmp_path).metrics["perplexity"]
        for epochs in (None, 0, 1)
    }
    assert perplexity[0] == perplexity[None] > 1.5 * perplexity[1]
    again = run(Config(**text, dense_epochs=1), tmp_path)
    assert again["dense_value"] == pytest.approx(perplexity[1], rel=1e-6) and again["dense_seconds"] > 0


FIGURES = Path(__file__).parent.parent / "figures"
FIRST = (  # what the names of the oldest rows were made of, None included
    *("model", "task", "method", "sparsity", "pattern", "allocation", "scope", "schedule", "rounds", "recovery"),
    *("recovery_epochs", "alpha", "temperature", "dense_epochs", "student_epochs", "optimizer", "learning_rate"),
    *("precision", "n_calibration", "length", "train_examples", "shares", "seed"),
)


@pytest.mark.parametrize("path", sorted(FIGURES.rglob("*.json.gz")), ids=lambda p: p.relative_to(FIGURES).as_posix())
def test_committed_rows_keep_their_identity(path):
    "Every row is found again under the name of its configuration."
    rows = saved_rows(path)
    assert rows
    for row in rows:
        config, version = config_of(row), row.versions["pruneresearch"]
        if row.widths is None:  # from before names left out what was not given: nobody asks for it any more
            asked = {**{name: getattr(config, name) for name in FIRST}, "version": version}
            assert row.id == fingerprint(asked)
        else:
            assert row.id == row_id(config, version)


@pytest.mark.parametrize("path", sorted(FIGURES.rglob("*.json.gz")), ids=lambda p: p.relative_to(FIGURES).as_posix())
def test_committed_rows_say_what_was_achieved_of_their_budget(path):
    for row in saved_rows(path):
        assert row.budget == budget_of(row.pattern, row.allocation) and "MACs" not in row.pattern
        known = {"weights": row.achieved_weights, "units": row.achieved_units, "macs": row.achieved_macs}
        assert row.achieved == known[row.budget] and all(value is None or 0 <= value < 1 for value in known.values())
        assert (known["units"] is None) == (row.pattern == "unstructured" or ":" in row.pattern)
        assert (known["macs"] is not None) == (row.budget == "macs")
        if known["units"] is not None and row.widths:
            assert known["units"] == units_gone(row.pattern, row.dense_costs["widths"], row.widths)


def test_a_row_of_another_shape_is_refused_in_one_sentence(tmp_path):
    row = asdict(saved_rows(FIGURES / "tiny" / "rows.json.gz")[0])
    old = {name: value for name, value in row.items() if not name.startswith("achieved_")} | {"sparsity_weights": 0.5}
    for wrong, says in (
        (old, "sparsity_weights"),
        ({name: value for name, value in row.items() if name != "metric"}, "no field 'metric'"),
        (row | {"budget": "parameters"}, "budget"),
        (row | {"budget": "macs"}, "achieved_macs"),
        (row | {"value": True}, "value"),
        (row | {"outcomes": ["a"]}, "outcomes"),
    ):
        with pytest.raises(RunError, match=says) as error:
            row_from(wrong, "row 1 of 'rows.json.gz'")
        assert str(error.value).startswith("row 1 of 'rows.json.gz' is damaged")


def test_a_field_of_the_request_is_a_field_of_the_configuration():
    known = {f.name: f for f in fields(Config)}
    assert {f.name for f in fields(Request)} <= set(known)
    assert Config("mlp", "digits", "wanda", 0.5) == Config(model="mlp", task="digits", method="wanda", sparsity=0.5)


def test_a_new_field_leaves_old_names_alone():
    @dataclass
    class Later(Config):
        colour: str = asked("red", "a field that decides")
        speed: int = asked(1, "a field that does not", decides=False)

    names = ("mlp", "digits", "wanda", 0.5)
    assert row_id(Later(*names)) == row_id(Config(*names)) == row_id(Later(*names, speed=2))
    assert row_id(Later(*names, colour="blue")) != row_id(Config(*names))
    assert row_id(Config(*names, repair=False)) == row_id(Config(*names)) != row_id(Config(*names, repair=True))


def test_an_edited_method_is_another_experiment():
    def named(power):
        @weight_score("test-own")
        def own(weight):
            "|W|ᵖ"
            return weight.abs() ** power

        return row_id(Config("mlp", "digits", "test-own", 0.5))

    try:
        assert named(1) == named(1) != named(2)
    finally:
        METHODS.pop("test-own")


def test_a_configuration_can_be_made_again_from_its_row(tmp_path):
    for config in (
        Config("mlp", "digits", "wanda", 0.75),
        Config("mlp", "digits", "wanda", 0.75, allocation="layer", sequential=False, seed=1),
    ):
        row = run(config, tmp_path)
        assert config_of(row) == config and row.method == "wanda" + " + one pass" * (config.sequential is False)
        assert row.allocation in ("row", "layer") and row.budget == "weights" and row.achieved_units is None


def test_a_function_between_rounds_is_no_part_of_an_experiment():
    with pytest.raises(UsageError, match="between"):
        Config("mlp", "digits", "wanda", 0.5, between=print)


def test_ids_follow_the_request():
    base = Config(method="wanda", **DIGITS)
    others = [
        Config(method="random", **DIGITS),
        Config(method="wanda", **DIGITS, seed=1),
        Config(method="wanda", **DIGITS, recovery="distil"),
        Config(method="wanda", **DIGITS, precision="bfloat16"),
    ]
    assert len({row_id(c) for c in [base, *others]}) == 5 and row_id(base) == row_id(Config(method="wanda", **DIGITS))


def test_seeds_share_a_protocol_and_scopes_do_not(tmp_path):
    rows = [
        run(Config(method="magnitude", **DIGITS, **extra), tmp_path)
        for extra in ({}, {"seed": 1}, {"scope": "all-linear"})
    ]
    assert rows[0]["protocol"] == rows[1]["protocol"] != rows[2]["protocol"]
    controls = [run(Config(method="random", **DIGITS), tmp_path)]
    with pytest.raises(UsageError, match="scope"):
        leaderboard(rows + controls)


def test_recovery_changes_the_model_and_its_cost_is_in_the_row(tmp_path):
    plain, trained = (run(Config(method="random", recovery=how, **DIGITS), tmp_path) for how in ("none", "fine-tune"))
    assert trained["value"] > plain["value"] and trained["recovery_seconds"] > 10 * plain["recovery_seconds"]
    assert trained["achieved"] == plain["achieved"] == 0.75


def test_the_gate_refuses_another_dense_model(tmp_path):
    config = Config(method="wanda", **DIGITS)
    dense_start(config, tmp_path)
    record = next(tmp_path.glob("dense/*/dense.json"))
    stored = json.loads(record.read_text())
    stored["metrics"]["accuracy"] -= 0.05
    record.write_text(json.dumps(stored))
    with pytest.raises(RunError, match="dense model"):
        dense_start(config, tmp_path)


@pytest.mark.parametrize(
    "wrong, says",
    [
        (dict(recovery="pray"), "known are"),
        (dict(optimizer="adam"), "known are"),
        (dict(shares={"heads": [0.5]}), "either"),
        (dict(train_examples=0), "between 1 and"),
        (dict(train_examples=10**6), "between 1 and"),
        (dict(precision="float8"), "known are"),
        (dict(rounds=3, schedule="cubic"), "without recovery"),
        (dict(method="gumbel", pattern="heads"), "for how long"),
        (dict(method="gumbel", pattern="heads", options={"num_epochs": 1}), "part of the recovery"),
        (
            dict(
                method="gumbel", pattern="heads", options={"num_epochs": 1}, recovery="fine-tune", recovery_epochs=0.5
            ),
            "part of the recovery",
        ),
    ],
)
def test_wrong_configurations(wrong, says, tmp_path):
    with pytest.raises(UsageError, match=says):
        run(Config(**{"method": "wanda", **DIGITS, **wrong}), tmp_path)
    assert not list((tmp_path / "rows").glob("*"))


def test_a_killed_run_leaves_no_row(tmp_path):
    script = f"""
import os, signal
from pruneresearch.lab import experiment
experiment.evaluate_with_outcomes, real = None, experiment.evaluate_with_outcomes
def dying(*a, **k):
    dying.calls += 1
    if dying.calls == 2: os.kill(os.getpid(), signal.SIGKILL)
    return real(*a, **k)
dying.calls = 0
experiment.evaluate_with_outcomes = dying
experiment.run(experiment.Config("mlp", "digits", "wanda", 0.75), {str(tmp_path)!r})
"""
    assert subprocess.run([sys.executable, "-c", script], capture_output=True).returncode == -signal.SIGKILL
    assert load_rows(tmp_path) == []
    assert run(Config(method="wanda", **DIGITS), tmp_path)["value"] > 0


TINY = dict(model="tiny-bert", task="sentiment", dense_epochs=0.05, recovery_epochs=0.05, n_calibration=8)


@pytest.mark.slow
def test_units_are_taken_out_before_the_recovery(tmp_path):
    shares = {"heads": [0, 0, 0.5, 0.75], "neurons": [0, 0.5, 0.5, 0.25]}
    rows = run_all(
        [
            Config(method=method, sparsity=None, shares=shares, pattern="heads+neurons", recovery="fine-tune", **TINY)
            for method in ("random", "magnitude", "activation-change")
        ],
        tmp_path,
    )
    heads, neurons = (2 + 3) * (3 * (32 * 128 + 32) + 128 * 32), (128 + 128 + 64) * (128 + 1 + 128)
    for row in rows:
        assert row["parameters"] == row["dense_costs"]["parameters"] - heads - neurons == 691_586 - heads - neurons
        for cost in ("macs", "inference_bytes", "bytes_dense"):
            assert row[cost] < row["dense_costs"][cost]
        assert row["achieved"] == rows[0]["achieved"] and row["sparsity"] is None and row["shares"] == shares
    board = leaderboard(rows)
    assert board["ranked"].all() and sorted(board["rank"]) == [1, 2, 3]
    from pruneresearch.lab.tables import as_markdown, versus

    assert "by block" in as_markdown(board) and "nan" not in as_markdown(board).lower()
    assert set(versus(rows, "activation-change")["against"]) == {"random", "magnitude"}


@pytest.mark.slow
def test_every_method_of_a_contest_trains_for_the_same_number_of_steps(tmp_path, monkeypatch):
    "Weights that train with their masks have had that much of their recovery; weights that are frozen have had none."
    from pruneresearch.lab import experiment
    from pruneresearch.training import gates

    steps = []

    def counted(module):
        own = module.recover

        def recover(*args, **options):
            done = own(*args, **options)
            steps.append(done["steps"])
            return done

        monkeypatch.setattr(module, "recover", recover)

    counted(experiment)
    counted(gates)
    common = dict(
        TINY, train_examples=640, pattern="heads+neurons", allocation="macs", sparsity=0.5, recovery_epochs=1.0
    )
    rows, taken = {}, {}
    for method, recovery, options in (
        ("magnitude", "fine-tune", None),
        ("gumbel", "fine-tune", {"num_epochs": 0.75}),
        ("gumbel", "none", {"num_epochs": 0.5, "freeze": True}),
    ):
        steps.clear()
        rows[method, recovery] = run(
            Config(**{**common, "method": method, "recovery": recovery, "options": options}), tmp_path
        )
        taken[method, recovery] = list(steps)
    assert (
        taken["magnitude", "fine-tune"] == [20]
        and taken["gumbel", "fine-tune"] == [15, 5]
        and taken["gumbel", "none"] == [10]
    )
    assert all(abs(row["achieved"] - 0.5) < 0.002 and row["budget"] == "macs" for row in rows.values())
    assert len({row["protocol"] for row in rows.values()}) == 1
    assert {len(row["widths"]) for row in rows.values()} == {4} and rows["gumbel", "none"]["options"] == {
        "num_epochs": 0.5,
        "freeze": True,
    }


@pytest.mark.slow
def test_the_student_is_pruned_and_the_dense_model_teaches(tmp_path):
    own, student, none = (
        run(Config(method="magnitude", sparsity=0.5, student_epochs=epochs, recovery="distil", **TINY), tmp_path)
        for epochs in (None, 0.02, 0)
    )
    assert own["student_metrics"] is None and set(student["student_metrics"]) == set(student["dense_metrics"])
    assert own["dense_metrics"] == student["dense_metrics"] == none["dense_metrics"] != student["student_metrics"]
    assert (
        len({row["protocol"] for row in (own, student, none)}) == 3
        and len([place for place in tmp_path.glob("dense/*") if place.is_dir()]) == 3
    )


@pytest.mark.slow
def test_alpha_temperature_and_training_examples_matter(tmp_path):
    base = Config(method="magnitude", sparsity=0.5, recovery="distil", **TINY | {"recovery_epochs": 0.5})
    rows = run_all(
        [
            replace(base, **change)
            for change in ({}, {"alpha": 0.0}, {"temperature": 9.0}, {"optimizer": "sgd"}, {"train_examples": 800})
        ],
        tmp_path,
    )
    assert (
        len({row["protocol"] for row in rows}) == 5
        and len({json.dumps([row["outcomes"], row["metrics"]]) for row in rows}) > 3
    )


@pytest.mark.slow
def test_a_dense_model_trained_in_half_precision_passes_its_gate(tmp_path):
    config = Config(method="magnitude", sparsity=0.5, precision="bfloat16", **TINY | {"dense_epochs": 0.3})
    first, again = dense_start(config, tmp_path), dense_start(config, tmp_path)
    assert first.metrics == again.metrics and first.outcomes == again.outcomes


def test_rounds_recover_in_between(tmp_path):
    rounds = dict(rounds=2, schedule="cubic", recovery="fine-tune", recovery_epochs=0.2)
    row = run(Config(method="magnitude", **DIGITS | rounds), tmp_path)
    assert row.achieved_weights == pytest.approx(DIGITS["sparsity"], abs=1e-4) and row.rounds == 2


def test_rows_that_are_kept(tmp_path):
    rows = [run(Config(method="wanda", **DIGITS), tmp_path)]
    save_rows(rows, tmp_path / "a.json.gz")
    save_rows(rows, tmp_path / "b.json.gz")
    save_rows([replace(rows[0], seed=99)], tmp_path / "later.json.gz")
    assert saved_rows(tmp_path / "a.json.gz", tmp_path / "later.json.gz") == rows  # the first file counts
    assert (
        saved_rows(tmp_path / "a.json.gz") == rows
        and (tmp_path / "a.json.gz").read_bytes() == (tmp_path / "b.json.gz").read_bytes()
    )
    (tmp_path / "cut.json.gz").write_bytes((tmp_path / "a.json.gz").read_bytes()[:-20])
    for name in ("cut", "missing"):
        with pytest.raises(RunError, match="holds no rows"):
            saved_rows(tmp_path / f"{name}.json.gz")


# ---- bench

CELLS = [
    ("x = 1; name = 'a'; results = output = done = None", "parameters"),
    ("profiles = {'smoke': [{'x': 1}, {'x': 0}, {'x': 2}]}", "profiles"),
    (
        "import os, signal\n"
        "if x == 2 and not os.path.exists(os.path.join(results, 'lives')): os.kill(os.getpid(), signal.SIGKILL)",
        "",
    ),
    ("from pruneresearch.basics.files import write_json\nwrite_json(done, {'value': 1/x, 'rows': []})", ""),
]


@pytest.fixture
def checkout(tmp_path):
    "A checkout with one benchmark: three parameter sets, one raises, one kills its kernel."
    (tmp_path / "nbs" / "benchmarks").mkdir(parents=True)
    (tmp_path / "settings.ini").touch()
    kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "python3"}}
    cells = [nbformat.v4.new_code_cell(source, metadata={"tags": [tag] if tag else []}) for source, tag in CELLS]
    nbformat.write(
        nbformat.v4.new_notebook(metadata=kernel, cells=cells), tmp_path / "nbs" / "benchmarks" / "divide.ipynb"
    )
    return tmp_path


def test_failures_are_listed_and_lose_nothing(checkout):
    lines = []
    first = bench(profile="smoke", jobs=2, root=checkout, say=lines.append)
    assert sorted(r["status"] for r in first) == ["done", "failed", "failed"] and len(lines) == 3
    reasons = " ".join(r["reason"] for r in first)
    assert "ZeroDivisionError" in reasons and "died" in reasons.lower()
    (checkout / "runs" / "lives").touch()
    again = bench(profile="smoke", jobs=2, root=checkout, say=lines.append)
    assert sorted(r["status"] for r in again) == ["done", "failed", "skipped"]


def test_without_resume_everything_runs_again(checkout):
    (checkout / "runs").mkdir()
    (checkout / "runs" / "lives").touch()
    for _ in range(2):
        outcome = bench(profile="smoke", jobs=2, root=checkout, resume=False, say=lambda line: None)
        assert sorted(r["status"] for r in outcome) == ["done", "done", "failed"], [r["reason"] for r in outcome]


def test_a_changed_notebook_or_parameter_is_another_run(checkout):
    before = {r.folder for r in plan((), "smoke", checkout / "runs", checkout)}
    notebook = checkout / "nbs" / "benchmarks" / "divide.ipynb"
    notebook.write_text(notebook.read_text().replace("1/x", "2/x"))
    assert len(before) == 3 and before.isdisjoint(r.folder for r in plan((), "smoke", checkout / "runs", checkout))


def test_profiles_are_read_without_running(checkout):
    notebook = checkout / "nbs" / "benchmarks" / "divide.ipynb"
    notebook.write_text(
        notebook.read_text().replace("profiles = {'smoke': [{'x': 1}, {'x': 0}, {'x': 2}]}", "profiles = make()")
    )
    with pytest.raises(RunError, match="literal"):
        profiles_of(notebook)


def test_rows_of_nothing(checkout):
    with pytest.raises(UsageError, match="no finished run"):
        rows_of("smoke", root=checkout)
    with pytest.raises(UsageError, match="no benchmark has runs"):
        bench(profile="tiny", root=checkout)


def test_changes_on_the_command_line(checkout, monkeypatch, capsys):
    monkeypatch.chdir(checkout)
    assert main(["bench", "--profile", "smoke", "--set", "x=4", "--set", "name=b c", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert (
        told.splitlines() == ["to do  divide  x=4  name='b c'", "1 runs, 1 to do; nothing was run."]
        and not (checkout / "runs").exists()
    )
    assert main(["bench", "--profile", "smoke", "--set", "x=4"]) == 0
    assert json.loads(next((checkout / "runs" / "runs" / "divide").glob("*/result.json")).read_text())["value"] == 0.25
    capsys.readouterr()
    assert main(
        ["bench", "--profile", "smoke", "--set", "x=4", "--dry-run"]
    ) == 0 and capsys.readouterr().out.startswith("done   divide  x=4")
    for wrong, says in (
        (["--set", "y=1"], "known are"),
        (["--set", "x"], "NAME=VALUE"),
        (["--set", "=1"], "NAME=VALUE"),
    ):
        assert main(["bench", "--profile", "smoke", *wrong]) == 2 and says in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name, path in list_benchmarks().items() if "figures" in parameters_of(path)])
def test_profiles_with_figures_name_their_seeds(name):
    "The report draws once more with the seeds of all runs together, so each run must say which are its own."
    for profile, runs in profiles_of(list_benchmarks()[name]).items():
        assert runs and all(run.get("seeds") for run in runs), profile


def test_figures_of_a_benchmark_see_all_seeds(checkout):
    "One run a seed; the report runs the notebook once more with all of them."
    from pruneresearch.lab.bench import report

    kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "python3"}}
    cells = [
        ("seeds = [9]\nresults = output = figures = done = None", "parameters"),
        ("profiles = {'smoke': [{'seeds': [0]}, {'seeds': [1]}]}", "profiles"),
        (
            "from dataclasses import asdict\nfrom pathlib import Path\n"
            "from pruneresearch.basics.files import write_json\n"
            "from pruneresearch.lab.rows import Row\n"
            "known = dict(protocol='p', model='m', task='t', method='magnitude', pattern='unstructured')\n"
            "known |= dict(allocation='layer', recovery='none', sparsity=0.5, achieved_weights=0.5)\n"
            "known |= dict(metric='accuracy', value=0.9, dense_value=0.95)\n"
            "row = Row(id=str(seeds[0]), seed=seeds[0], **known)\n"
            "write_json(Path(results)/'rows'/f'{seeds[0]}.json', asdict(row))\n"
            "if figures: write_json(Path(figures)/'seeds.json', seeds)\n"
            "write_json(done, {'rows': [str(s) for s in seeds]})",
            "",
        ),
    ]
    for name, own in (
        ("drawing", cells),
        ("leaderboard", [("a = 1", "parameters"), ("profiles = {'smoke': []}", "profiles")]),
    ):
        nbformat.write(
            nbformat.v4.new_notebook(
                metadata=kernel,
                cells=[
                    nbformat.v4.new_code_cell(source, metadata={"tags": [tag] if tag else []}) for source, tag in own
                ],
            ),
            checkout / "nbs" / "benchmarks" / f"{name}.ipynb",
        )
    (checkout / "nbs" / "benchmarks" / "divide.ipynb").unlink()
    bench(profile="smoke", root=checkout, say=lambda line: None)
    assert not (checkout / "figures").exists()
    report("smoke", root=checkout)
    assert json.loads((checkout / "figures" / "smoke" / "seeds.json").read_text()) == [0, 1]


@pytest.mark.parametrize(
    "wrong", [dict(sparsity="["), dict(seed="["), dict(method="w"), dict(pattern="2"), dict(recovery="[")]
)
def test_a_list_that_came_as_text_is_named(wrong):
    with pytest.raises(UsageError, match="a list was given as text, as papermill's -p does. Give lists with -y"):
        check(Config(**dict(model="mlp", task="digits", method="magnitude", sparsity=0.5) | wrong))
