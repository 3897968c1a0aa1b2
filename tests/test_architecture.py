"Architecture: imports point to the left only, and importing the package costs little more than torch and transformers."

import ast
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


def test_notebooks_mirror_the_package():
    "A module is exported by the notebook that lies where the module lies."
    directive = re.compile(r'"#\| default_exp ([\w.]+)')  # as the first words of a line of a cell
    exported = {
        found[1]: path
        for path in (ROOT / "nbs").rglob("*.ipynb")
        if (found := directive.search(path.read_text(encoding="utf-8")))
    }
    elsewhere = {"__init__": "package", "cli.__main__": "cli/module"}
    for module, path in exported.items():
        assert str(path.relative_to(ROOT / "nbs").with_suffix("")) == elsewhere.get(module, module.replace(".", "/"))


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


def fresh(code):
    "What a fresh Python process prints."
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert run.returncode == 0, run.stderr
    return run.stdout.split()


def test_importing_the_package_is_light():
    "Seconds of processor time, the least of three fresh processes: other work on the machine does not count."
    code = (
        "import sys, time; import torch, transformers; start = time.process_time(); import pruneresearch; print(time.process_time() - start); "
        "print(*(name for name in ('datasets', 'evaluate', 'matplotlib', 'sklearn') if name in sys.modules))"
    )
    runs = [fresh(code) for _ in range(3)]
    assert runs[0][1:] == [], f"imported on the way: {runs[0][1:]}"
    assert min(float(run[0]) for run in runs) < 1
