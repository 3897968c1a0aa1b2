"The paper profile from end to end with its own ids: what is behind them is small and random, and there is no network."

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub import offline_hub

from pruneresearch.basics.files import read_json
from pruneresearch.lab.runs import plan

SHORT = {  # benchmark → what makes its paper runs short; models, tasks, methods and precision stay
    "activation_change": dict(epochs=0.1, recovery_epochs=0.1, train_examples=64, n_calibration=16, seeds=[0]),
    "gradprobe": dict(n_calibration=8, length=64, seeds=[0]),
    "gumbel": dict(
        macs=[0.5],
        epochs=0.2,
        mask_epochs=0.1,
        dense_epochs=0.1,
        schedules=["linear"],
        n_calibration=32,
        train_examples=64,
        seeds=[0],
    ),
    "hebbian": dict(
        sweep=[0.5],
        sweep_distilled=[0.5],
        rounds=2,
        teacher_epochs=0.1,
        student_epochs=0.1,
        distil_epochs=0.1,
        n_calibration=16,
        seeds=[0],
    ),
    "leaderboard": dict(sparsities=[0.5], recovery_sparsities=[0.5], recovery_epochs=0.1, n_calibration=16, seeds=[0]),
    "one_shot_llm": dict(sparsities=[0.5], unit_shares=[0.5], n_calibration=8, length=64, texts=1, seeds=[0]),
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    return offline_hub(tmp_path_factory.mktemp("hub"))


def test_every_benchmark_of_the_paper_profile_is_rehearsed(tmp_path):
    assert {run.name for run in plan([], "paper", tmp_path)} == set(SHORT)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_a_benchmark_of_the_paper_profile_runs_through(name, hub, tmp_path):
    changes = [f"--set={key}={json.dumps(value)}" for key, value in SHORT[name].items()]
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "pruneresearch"),
            "bench",
            name,
            "--profile",
            "paper",
            f"--results={tmp_path}",
            *changes,
        ],
        env={**os.environ, **hub},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    runs = plan([name], "paper", tmp_path, changes=SHORT[name])
    assert all(run.done for run in runs)
    rows = [
        read_json(tmp_path / "rows" / f"{row}.json")
        for run in runs
        for row in read_json(run.folder / "result.json")["rows"]
    ]
    assert {(row["model"], row["task"]) for row in rows} == {
        (run.parameters["model"], run.parameters["task"]) for run in runs
    }
    assert all(math.isfinite(row["value"]) for row in rows)
