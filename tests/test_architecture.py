"Architecture: imports point to the left only, notebooks mirror modules, and importing the package costs little."

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pruneresearch import FOLDERS

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pruneresearch"


def module_of(path):
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    return "package" if name == "__init__" else name.removesuffix(".__init__")


MODULES = {
    module_of(path): path
    for path in PACKAGE.rglob("*.py")
    if path.name not in ("_modidx.py", "__main__.py") and "embedded" not in path.parts
}


def imported(source, module, known):
    "Names of our modules that the source imports, wherever the statement stands (also inside functions)."
    inside = module.split(".")[:-1]  # package of the module, below pruneresearch
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "pruneresearch":
                    yield alias.name[len("pruneresearch.") :] or "package"
        elif isinstance(node, ast.ImportFrom):
            parts = node.module.split(".") if node.module else []
            if node.level:
                parts = inside[: len(inside) - node.level + 1] + parts
            elif parts[:1] == ["pruneresearch"]:
                parts = parts[1:]
            else:
                continue
            for alias in node.names:
                longer = ".".join([*parts, alias.name])
                yield longer if longer in known else ".".join(parts) or "package"


@pytest.mark.parametrize(
    "source, module, expected",
    [
        ("import pruneresearch.pruning.masks", "cli.main", {"pruning.masks"}),
        ("import pruneresearch", "cli.main", {"package"}),
        ("from . import main, nothing", "cli.module", {"cli.main", "cli"}),
        ("from .masks import Masks", "pruning.engine", {"pruning.masks"}),
        ("from ..pruning.engine import prune", "methods.wanda", {"pruning.engine"}),
        ("from . import random", "methods.wanda", {"methods.random"}),
        ("from ..pruning import masks", "methods.wanda", {"pruning.masks"}),
        ("def f():\n    from pruneresearch.methods.wanda import WANDA", "lab.bench", {"methods.wanda"}),
        ("import random, torch\nfrom torch import nn", "methods.wanda", set()),
        ("from pruneresearch.data import tasks", "model.loading", {"data.tasks"}),
    ],
)
def test_the_parser_sees_every_form(source, module, expected):
    known = {"pruning.masks", "pruning.engine", "data.tasks", "methods.random", "methods.wanda", "cli.main"}
    assert set(imported(source, module, known)) == expected


def test_every_module_has_a_folder():
    outside = [name for name in MODULES if name != "package" and name.split(".")[0] not in FOLDERS]
    assert not outside, f"no folder of pruneresearch.FOLDERS holds {outside}"


def exported_module(path):
    "The module that a notebook exports, None for a page."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    found = re.search(r"^#\| default_exp (\S+)", code, re.M)
    return found and found[1]


def test_notebooks_mirror_the_package():
    "A module is exported by the notebook that lies where the module lies."
    exported = {module: path for path in (ROOT / "nbs").rglob("*.ipynb") if (module := exported_module(path))}
    elsewhere = {"__init__": "package", "cli.__main__": "cli/module"}
    for module, path in exported.items():
        place = path.relative_to(ROOT / "nbs").with_suffix("").as_posix()
        assert place == elsewhere.get(module, module.replace(".", "/"))


def test_the_architecture_page_lists_every_room():
    cells = json.loads((ROOT / "nbs/architecture.ipynb").read_text(encoding="utf-8"))["cells"]
    shown = "".join(
        "".join(output.get("data", {}).get("text/markdown", "")) for cell in cells for output in cell.get("outputs", [])
    )
    rooms = {path for folder in FOLDERS for path in (ROOT / "nbs" / folder).glob("*.ipynb")}
    lost = [path for path in rooms if f"[{path.stem}]({path.parent.name}/{path.name})" not in shown]
    assert not lost, f"execute nbs/architecture.ipynb again, its table lacks {sorted(lost)}"
    assert shown.count("](") == len(rooms), "execute nbs/architecture.ipynb again, its table has rooms that are gone"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_to_the_left(module):
    order = list(FOLDERS)
    for other in imported(MODULES[module].read_text(encoding="utf-8"), module, MODULES):
        mine, its = module.split(".")[0], other.split(".")[0]
        if mine == "package" or its in ("package", mine):
            continue
        assert order.index(its) < order.index(mine), f"{module} imports {other}, which stands to its right"


def test_no_circle_inside_a_folder():
    left = {
        module: {
            other
            for other in imported(path.read_text(encoding="utf-8"), module, MODULES)
            if other in MODULES and other != module
        }
        for module, path in MODULES.items()
    }
    while free := [module for module, needs in left.items() if not needs - {"package"}]:
        for module in free:
            del left[module]
        for needs in left.values():
            needs.difference_update(free)
    assert not left, f"these modules import each other: {sorted(left)}"


def imported_by(statement):
    "Names of the modules that a statement imports in a fresh process, modules counted instead of seconds."
    code = f"import sys; before = set(sys.modules); {statement}; print(*sorted(set(sys.modules) - before))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert run.returncode == 0, run.stderr
    return run.stdout.split()


def test_importing_the_package_imports_nothing_else():
    others = {name.split(".")[0] for name in imported_by("import pruneresearch")} - {"pruneresearch"}
    assert others <= sys.stdlib_module_names, f"imported on the way: {sorted(others - sys.stdlib_module_names)}"


def test_pruning_imports_neither_a_trainer_nor_a_figure():
    found = imported_by("from pruneresearch import evaluate_model, load_model, load_task, prune")
    heavy = {"evaluate", "matplotlib", "seaborn", "papermill", "transformers.trainer", "transformers.pipelines"}
    assert not heavy & set(found), f"imported on the way: {sorted(heavy & set(found))}"
