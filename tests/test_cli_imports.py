"What the command line imports: seconds depend on the machine, modules do not."

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "datasets", "evaluate", "pandas", "sklearn", "scipy", "matplotlib", "numpy")
TRAINING = ("evaluate", "transformers.trainer", "transformers.pipelines", "sklearn", "matplotlib", "seaborn")
COUNT = """
import contextlib, io, json, sys
from pruneresearch.cli.main import main
with contextlib.redirect_stdout(io.StringIO()):
    try:
        code = main(sys.argv[2:])
    except SystemExit as end:
        code = end.code
print(json.dumps([code, [name for name in json.loads(sys.argv[1]) if name in sys.modules]]))
"""


def imported(words, names):
    "[exit code, which of these modules a fresh process has imported after a command]."
    command = [sys.executable, "-c", COUNT, json.dumps(names), *words.split()]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "words, code",
    [("--help", 0), ("prune --help", 0), ("bench --help", 0), ("prune --model tiny-llama", 2), ("prone", 2)],
)
def test_help_and_bad_arguments_import_nothing_heavy(words, code):
    assert imported(words, HEAVY) == [code, []]


def test_pruning_imports_no_trainer_and_no_metrics_library():
    words = "prune --model tiny-llama --task pydocs --method magnitude --sparsity 0.5"
    assert imported(words, TRAINING) == [0, []]
