"The leaderboard that is drawn while runs come in, and the runs that profile quick is made of."

import ast
import json
import time
from pathlib import Path

import pytest

from pruneresearch.basics.errors import UsageError
from pruneresearch.lab.bench import Preview, _preview_of
from pruneresearch.lab.execution import outcome_of
from pruneresearch.lab.rows import Row
from pruneresearch.lab.runs import Run, plan, project_root

ROWS = [
    Row(
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
        metric="accuracy",
        value=value + 0.01 * seed,
        dense_value=0.95,
    )
    for method, value in {"random": 0.5, "magnitude": 0.8, "wanda": 0.9}.items()
    for seed in range(2)
]
ROOT = Path(__file__).resolve().parent.parent
BOARD, OTHER = (Run(name, Path("x.ipynb"), {}, Path(name)) for name in ("leaderboard", "gumbel"))


def test_the_first_picture_comes_with_the_first_rows_and_is_refreshed(tmp_path):
    said, rows = [], ROWS[::2]  # seed 0
    preview = Preview(lambda: rows, tmp_path / "board", said.append)
    preview.refresh()
    names = ["leaderboard.csv", "leaderboard.png", "leaderboard.svg", "table.md"]
    assert sorted(path.name for path in (tmp_path / "board").iterdir()) == names
    assert "| wanda" in said[0] and "leaderboard.png" in said[1] and "table.md" in said[1]
    rows = ROWS
    preview.refresh()
    assert len(said) == 3 and "2 seeds" in (tmp_path / "board" / "table.md").read_text()
    preview.refresh(last=True)
    assert len(said) == 5 and "2 seeds" in said[3]  # the table is printed the first and the last time


def test_rows_that_cannot_be_compared_are_said_and_stop_nothing(tmp_path):
    said = []

    def none():
        raise UsageError("no finished run.")

    for rows in (lambda: ROWS[4:], none):  # without its controls, and none at all
        Preview(rows, tmp_path, said.append).refresh()
    assert len(said) == 2 and all(line.startswith("no leaderboard yet: ") for line in said)
    assert not list(tmp_path.iterdir())


def test_only_new_rows_of_the_leaderboard_are_drawn_and_not_all_the_time(tmp_path):
    preview = Preview(lambda: ROWS, tmp_path, lambda line: None)
    assert preview.concerns(BOARD, outcome_of("done"))
    assert not preview.concerns(BOARD, outcome_of("skipped")) and not preview.concerns(OTHER, outcome_of("done"))
    preview.refresh()
    assert preview.ready_at > time.monotonic() and not preview.concerns(BOARD, outcome_of("done"))


def test_a_preview_is_of_the_profile_as_it_is(tmp_path):
    found = _preview_of("quick", [OTHER, BOARD], tmp_path, None, None, print)
    assert found.folder == tmp_path / "leaderboard" / "quick"
    assert _preview_of("quick", [BOARD], tmp_path, None, {"model": "mlp"}, print) is None
    assert _preview_of("quick", [OTHER], tmp_path, None, None, print) is None


@pytest.mark.parametrize("profile, seeds", [("quick", 3), ("tiny", 8)])
def test_runs_of_a_contest_share_what_they_can_and_miss_no_seed(profile, seeds):
    contests = {}
    for run in plan(["leaderboard"], profile, Path("runs")):
        key = repr({name: value for name, value in run.parameters.items() if name != "seeds"})
        contests.setdefault(key, []).append(run.parameters["seeds"])
    assert all(sorted(sum(parts, [])) == list(range(seeds)) and len(parts) == 2 for parts in contests.values())
    assert profile != "quick" or {parts[0] == [0] for parts in contests.values()} == {True} and len(contests) == 2


# ---- committed files


def read_from_beside(page):
    "Strings in a page's code that lead out of its folder to something that is there."
    code = [
        cell["source"] for cell in json.loads(page.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"
    ]
    for source in code:
        lines = "".join(line for line in source if not line.startswith(("%", "!")))
        for node in ast.walk(ast.parse(lines)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("../"):
                if not node.value.endswith((".ipynb", "\n")) and (page.parent / node.value).exists():
                    yield node.value


@pytest.mark.parametrize("place", ["", "nbs/guides", "elsewhere"])
def test_committed_rows_are_found_from_any_folder(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path if place == "elsewhere" else ROOT / place)
    assert project_root() == ROOT and (project_root() / "figures/tiny/rows.json.gz").is_file()


def test_no_page_looks_for_committed_files_from_its_working_directory():
    pages = sorted((ROOT / "nbs").rglob("*.ipynb"))
    found = {str(page.relative_to(ROOT)): list(read_from_beside(page)) for page in pages}
    assert len(pages) > 100 and {page: paths for page, paths in found.items() if paths} == {}
