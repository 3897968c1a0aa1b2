"Models: what importing their rooms costs, and what an evaluation leaves unimported."

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = sorted(
    f"pruneresearch.{path.parent.name}.{path.stem}"
    for folder in ("model", "measure")
    for path in (ROOT / "pruneresearch" / folder).glob("*.py")
    if path.stem != "__init__"
)
LIGHT = ["anatomy", "calls", "families", "folders", "mlp"]  # rooms that open no checkpoint
UNNEEDED = {"transformers.pipelines", "transformers.trainer", "evaluate"}
STEPS = [
    f"import {', '.join(f'pruneresearch.model.{room}' for room in LIGHT)}",
    f"import {', '.join(ROOMS)}",
    "from pruneresearch.data.tasks import load_task; from pruneresearch.measure.quality import evaluate_model; "
    "from pruneresearch.model.loading import load_model; "
    "assert evaluate_model(load_model('mlp'), load_task('digits'))['accuracy'] > 0.9",
]


@pytest.fixture(scope="module")
def imported():
    "Names of the modules that a fresh process holds after the light rooms, after all rooms, and after an evaluation."
    program = "import json, sys\n" + "\n".join(f"{step}\nprint(json.dumps(list(sys.modules)))" for step in STEPS)
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert run.returncode == 0, run.stderr
    return [set(json.loads(line)) for line in run.stdout.splitlines()]


def test_rooms_that_open_no_checkpoint_do_not_import_transformers(imported):
    assert "torch" in imported[0] and "transformers" not in imported[0]


def test_importing_the_rooms_of_model_and_measure_imports_no_heavy_library(imported):
    assert {"pruneresearch.model.loading", "pruneresearch.measure.text"} <= imported[1]
    assert not imported[1] & (UNNEEDED | {"sklearn", "scipy", "datasets", "accelerate", "pandas"})


def test_an_evaluation_imports_neither_evaluate_nor_the_trainer(imported):
    assert "sklearn" in imported[2] and not imported[2] & UNNEEDED
