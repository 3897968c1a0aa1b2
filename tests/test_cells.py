"How the library's notebooks read: short exported cells, each followed by an example; few public names, each used."

import json
import re
import statistics
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def code_cells(path):
    "Sources of the code cells of a notebook that are not empty."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [source for cell in cells if cell["cell_type"] == "code" and (source := "".join(cell["source"])).strip()]


LIBRARY = [
    path
    for path in sorted((ROOT / "nbs").rglob("*.ipynb"))
    if any(source.startswith("#| default_exp") for source in code_cells(path))
]


def exported(source):
    return "#| export" in source


def example(source):
    "A visible cell that is not part of the package."
    return bool(source) and not exported(source) and "#| hide" not in source


def figures(cells):
    "(lines of each exported cell, whether an example follows it)."
    return [(len(cell.splitlines()) - 1, example(after)) for cell, after in pairwise([*cells, ""]) if exported(cell)]


def test_the_measure_counts_lines_and_examples():
    cells = ["#| export\nimport x", "#| export\ndef f():\n    return 1", "f()", "#| export\nA = 1", "#| hide\nA"]
    assert figures(cells) == [(1, False), (2, True), (1, False)]


def test_exported_cells_are_short_and_followed_by_examples(capsys):
    found = {path: figures(code_cells(path)) for path in LIBRARY}
    everything = [pair for pairs in found.values() for pair in pairs]
    lines = sorted(n for n, _ in everything)
    median, long = statistics.median(lines), lines[int(0.95 * (len(lines) - 1))]
    shown = statistics.mean(seen for _, seen in everything)
    with capsys.disabled():
        print(f"\n{len(lines)} exported cells: median {median:.0f} lines, 95 % {long}, {shown:.0%} with an example")
    worst = sorted(found, key=lambda path: -sum(n > 20 for n, _ in found[path]))[:5]
    crowded = ", ".join(f"{path.stem} {sum(n > 20 for n, _ in found[path])}" for path in worst)
    bare = sorted((path for path in found if found[path]), key=lambda path: statistics.mean(s for _, s in found[path]))
    unseen = ", ".join(f"{path.stem} {statistics.mean(s for _, s in found[path]):.0%}" for path in bare[:5])
    assert median <= 10 and long <= 20, f"cells over 20 lines: {crowded}"
    assert shown >= 0.7, f"fewest examples: {unseen}"


# ---- public names ----


def modules():
    "Module file → what it exports in `__all__`."
    found = {}
    for path in sorted((ROOT / "pruneresearch").rglob("*.py")):
        names = re.search(r"^__all__ = \[(.*?)\]", path.read_text(encoding="utf-8"), re.M | re.S)
        if names and path.name not in ("_modidx.py", "__init__.py"):
            found[path] = re.findall(r"'([^']+)'", names[1])
    return found


def words(text):
    return set(re.findall(r"[A-Za-z_]\w*", text))


def places():
    "What may use a name: the code of modules, notebooks and tests, and the prose of pages; place → words."
    found = {path: words(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "pruneresearch").rglob("*.py"))}
    found |= {path: words(path.read_text(encoding="utf-8")) for path in (ROOT / "tests").glob("*.py")}
    for path in (ROOT / "nbs").rglob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        found[path] = words("\n".join("".join(cell["source"]) for cell in cells))
    return {path: used for path, used in found.items() if path.name not in ("_modidx.py", "test_cells.py")}


def notebook_of(module):
    path = (ROOT / "nbs" / module.relative_to(ROOT / "pruneresearch")).with_suffix(".ipynb")
    return path.with_name("module.ipynb") if path.stem == "__main__" else path


@pytest.fixture(scope="module")
def public():
    return modules()


def test_few_names_are_public(public, capsys):
    count = sum(map(len, public.values()))
    with capsys.disabled():
        print(f"\n{count} public names in {len(public)} modules")
    most = sorted(public, key=lambda path: -len(public[path]))[:8]
    crowded = ", ".join(f"{path.relative_to(ROOT)} {len(public[path])}" for path in most)
    assert count <= 350, f"make names private that only their own module uses; most are in {crowded}"


def test_each_public_name_is_used_elsewhere(public):
    used = places()
    unused = [
        f"{module.relative_to(ROOT).with_suffix('')}.{name}"
        for module, names in public.items()
        for name in names
        if not any(name in found for place, found in used.items() if place not in (module, notebook_of(module)))
    ]
    assert not unused, f"{len(unused)} public names that nothing else uses: {', '.join(unused)}"
