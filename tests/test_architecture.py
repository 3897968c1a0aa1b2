"Architecture: imports point to the left only, and importing the package costs little more than torch and transformers."
import ast, subprocess, sys
from pathlib import Path

import pytest, yaml

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT/"pruneresearch"


def rooms():
    "Module names from left to right: the site's Reference section, with the methods between export and experiment."
    sections = {entry["section"]: entry["contents"] for entry in yaml.safe_load((ROOT/"_quarto.yml").read_text())["website"]["sidebar"]["contents"]}
    library = [Path(name).stem for name in sections["Reference"]]
    methods = ["methods", *("methods." + Path(name).stem for name in sections["Methods"])]
    place = library.index("export") + 1
    assert library[place] == "experiment" and library[-1] == "package"
    return library[:place] + methods + library[place:]


def module_of(path):
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    return {"__init__": "package", "methods.__init__": "methods"}.get(name, name)


MODULES = {module_of(path): path for path in PACKAGE.rglob("*.py") if path.name not in ("_modidx.py", "__main__.py") and "embedded" not in path.parts}


def imported(source, module, known):
    "Names of our modules that the source imports, wherever the statement stands (also inside functions)."
    inside = module.split(".")[:-1]  # package of the module, below pruneresearch
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "pruneresearch": yield alias.name[len("pruneresearch."):] or "package"
        elif isinstance(node, ast.ImportFrom):
            parts = node.module.split(".") if node.module else []
            if node.level: parts = inside[:len(inside) - node.level + 1] + parts
            elif parts[:1] == ["pruneresearch"]: parts = parts[1:]
            else: continue
            for alias in node.names:
                longer = ".".join([*parts, alias.name])
                yield longer if longer in known else ".".join(parts) or "package"


@pytest.mark.parametrize("source, module, expected", [
    ("import pruneresearch.masks", "cli", {"masks"}), ("import pruneresearch", "cli", {"package"}), ("from . import masks, nothing", "cli", {"masks", "package"}),
    ("from .masks import Masks", "cli", {"masks"}), ("from ..pruning import prune", "methods.wanda", {"pruning"}), ("from . import random", "methods.wanda", {"methods.random"}),
    ("from .random import RANDOM", "methods.wanda", {"methods.random"}), ("def f():\n    from pruneresearch.methods.wanda import WANDA", "bench", {"methods.wanda"}),
    ("import random, torch\nfrom torch import nn", "methods.wanda", set()), ("from pruneresearch import tasks", "models", {"tasks"}),
])
def test_the_parser_sees_every_form(source, module, expected):
    assert set(imported(source, module, {"masks", "pruning", "tasks", "methods.random", "methods.wanda"})) == expected


def test_every_module_has_a_place():
    assert set(MODULES) <= set(rooms()), "a module is missing in the Reference or Methods section of _quarto.yml"
    assert len(set(rooms())) == len(rooms())


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_to_the_left(module):
    order = rooms()
    if module not in order: pytest.skip("no place in the order: another test tells")
    for other in imported(MODULES[module].read_text(encoding="utf-8"), module, order):
        assert other in order and order.index(other) < order.index(module), f"{module} imports {other}, which stands to its right"


def fresh(code):
    "What a fresh Python process prints."
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert run.returncode == 0, run.stderr
    return run.stdout.split()


def test_importing_the_package_is_light():
    "Seconds of processor time, the least of three fresh processes: other work on the machine does not count."
    code = ("import sys, time; import torch, transformers; start = time.process_time(); import pruneresearch; print(time.process_time() - start); "
            "print(*(name for name in ('datasets', 'evaluate', 'matplotlib', 'sklearn') if name in sys.modules))")
    runs = [fresh(code) for _ in range(3)]
    assert runs[0][1:] == [], f"imported on the way: {runs[0][1:]}"
    assert min(float(run[0]) for run in runs) < 1
