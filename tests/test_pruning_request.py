"A request is one record: a field that is declared once is everywhere."

import os
import shutil
import subprocess
import sys
from dataclasses import fields
from inspect import signature
from pathlib import Path

import pytest

import pruneresearch
from pruneresearch.cli.main import parser
from pruneresearch.lab.experiment import Config
from pruneresearch.pruning.engine import prune
from pruneresearch.pruning.request import Request
from pruneresearch.shipping.stream import prune_stream

EVERYWHERE = """
import inspect
from pruneresearch.cli.flags import request_fields
from pruneresearch.cli.main import parser
from pruneresearch.lab.experiment import Config, row_id
from pruneresearch.pruning.engine import prune
from pruneresearch.shipping.stream import prune_stream

for function in (prune, prune_stream):
    assert inspect.signature(function).parameters["dummy"].default == 3, function
plain = dict(model="tiny-bert", task="sentiment", method="magnitude", sparsity=0.5)
assert Config(**plain).dummy == 3 and row_id(Config(**plain)) == row_id(Config(**plain, dummy=3))
assert row_id(Config(**plain)) != row_id(Config(**plain, dummy=4))
words = "prune --model tiny-bert --task sentiment --dummy 5".split()
assert request_fields(parser().parse_args(words))["dummy"] == 5
print(row_id(Config(**plain)))
"""


def test_a_new_field_shows_up_everywhere_from_one_edit(tmp_path):
    "One line is added to a copy of the package: `prune`, streams, configurations and the command line have the field."
    package = Path(pruneresearch.__file__).parent
    shutil.copytree(package, tmp_path / "pruneresearch", ignore=shutil.ignore_patterns("__pycache__"))
    room = tmp_path / "pruneresearch" / "pruning" / "request.py"
    source, last = room.read_text(encoding="utf-8"), "    progress: bool = asked("
    assert source.count(last) == 1
    room.write_text(source.replace(last, f'    dummy: int = asked(3, "of no use")\n{last}'), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", EVERYWHERE], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    from pruneresearch.lab.experiment import row_id

    before = row_id(Config(model="tiny-bert", task="sentiment", method="magnitude", sparsity=0.5))
    assert run.stdout.strip() == before  # at its default a new field leaves every identity as it was


@pytest.mark.parametrize("field", fields(Request), ids=lambda field: field.name)
def test_every_field_is_taken_by_prune_and_said_to_mean_something(field):
    assert field.metadata["help"][-1] not in ".!" and len(field.metadata["help"]) > 10
    assert signature(prune).parameters[field.name].default == field.default
    assert field.name in {own.name for own in fields(Config)}
    streams = signature(prune_stream).parameters
    assert (field.name in streams) != (field.name in ("scope", "schedule", "rounds", "between"))


def test_flags_have_the_names_and_defaults_of_the_fields():
    args = vars(parser().parse_args("prune --model a --task b".split()))
    for field in fields(Request):
        assert (field.name in args) == field.metadata["flag"], field.name
        if field.metadata["flag"]:
            assert args[field.name] == field.default


def test_a_field_that_does_not_decide_is_no_part_of_an_identity():
    from pruneresearch.lab.experiment import row_id

    plain = dict(model="tiny-bert", task="sentiment", method="magnitude", sparsity=0.5)
    for field in fields(Request):
        if not field.metadata["decides"]:
            assert row_id(Config(**plain)) == row_id(Config(**plain, **{field.name: "something else"})), field.name
