"The command that trains masks: every kind of task, the three files, a tracker offline, bad calls."

import json
import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pruneresearch.basics.errors import RunError, UsageError
from pruneresearch.basics.files import read_json
from pruneresearch.cli.flags import aligned
from pruneresearch.cli.main import main
from pruneresearch.cli.masks import _masks_heading, _masks_summary
from pruneresearch.recipes.train_masks import FILES, train_masks

STSB = "index genre filename year old_index source1 source2 sentence1 sentence2 score".split()
WORDS = "red green blue black white".split()


def squad(version: str) -> str:
    "Three paragraphs of six questions; with version 2.0 every third has no answer."

    def question(p, i):
        word, missing = WORDS[(p + i) % len(WORDS)], version == "2.0" and i % 3 == 2
        answers = [] if missing else [{"text": word, "answer_start": context.index(word)}]
        return {
            "id": f"q{p}-{i}",
            "question": f"What is number {i}?",
            "answers": answers,
            **({"is_impossible": missing} if version == "2.0" else {}),
        }

    paragraphs = []
    for p in range(30):
        context = "The colours here are " + ", ".join(WORDS[p % 5 :] + WORDS[: p % 5]) + "."
        paragraphs.append({"context": context, "qas": [question(p, i) for i in range(6)]})
    return json.dumps(
        {
            "version": version,
            "data": [{"title": f"colours {i}", "paragraphs": [paragraph]} for i, paragraph in enumerate(paragraphs)],
        }
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    "Local data in the layouts of STS-B and of both versions of SQuAD."
    root = tmp_path_factory.mktemp("data")
    for name in ("STS-B", "squad", "squad_v2"):
        (root / name).mkdir()
    for part, n in (("train", 64), ("dev", 24)):
        rows = [
            STSB,
            *[
                (
                    i,
                    "news",
                    "f",
                    2012,
                    i,
                    "a",
                    "b",
                    f"a film about {WORDS[i % 5]}",
                    f"a film about {WORDS[i % 3]}",
                    i % 6,
                )
                for i in range(n)
            ],
        ]
        (root / "STS-B" / f"{part}.tsv").write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))
    for name, version in (("squad", "1.1"), ("squad_v2", "2.0")):
        (root / name / "all.json").write_text(squad(version))
    return root


def call(*words) -> int:
    return main([str(word) for word in ("train-masks", *words)])


@pytest.mark.slow
@pytest.mark.parametrize(
    "task, metrics",
    [
        ("stsb", {"pearson", "spearman"}),
        ("squad", {"exact_match", "f1"}),
        ("squad_v2", {"exact_match", "f1", "no_answer_accuracy"}),
    ],
)
def test_every_kind_of_task(task, metrics, data, tmp_path, capsys):
    out = tmp_path / "out"
    assert (
        call(
            "--model_name",
            "tiny-bert",
            "--task_name",
            task,
            "--prune",
            "--learn_masks",
            "all",
            "--num_epochs",
            2,
            "--masks_LR",
            0.1,
            "--target_sparsity",
            0.3,
            "--fine_tune_epochs",
            0.5,
            "--length",
            64,
            "--data-dir",
            data,
            "--output_dir",
            out,
        )
        == 0
    )
    report, said = read_json(out / "metrics.json"), capsys.readouterr().out
    assert metrics <= set(report["gated"]) and set(report["fine_tuned"]) == set(report["gated"])
    assert report["removed"] == pytest.approx(
        report["gated"], abs=1e-4
    )  # sums of fewer terms, so a correlation may differ in its last digits
    assert (
        all(name in said for name in metrics)
        and str(out) in said
        and report["parameters"]["pruned"] < report["parameters"]["dense"]
    )
    assert all(torch.load(out / name, weights_only=True).dtype == torch.bool for name in FILES.values())
    assert (
        main(
            [
                "evaluate",
                "--model",
                str(out / "pruned"),
                "--task",
                f"glue/{task}" if task == "stsb" else task,
                "--length",
                "64",
                "--data-dir",
                str(data),
                "--json",
            ]
        )
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    found = found.get("metrics", found)
    assert all(found[name] == pytest.approx(report["fine_tuned"][name], abs=1e-6) for name in metrics)


SEEDS_OWN = "--prune --learn_masks ffn_int --num_epochs 5 --wandb".split()


@pytest.mark.slow
def test_the_published_command_with_a_tracker_offline(tmp_path, data):
    "As written there, but for model and task; no key, no network: the tracker writes to disk and says so."
    pytest.importorskip("wandb")
    env = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")} | {
        "HOME": str(tmp_path),
        "PRUNERESEARCH_DATA": str(data),
    }
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "pruneresearch"),
            "train-masks",
            "--model_name",
            "tiny-bert",
            "--task_name",
            "stsb",
            *SEEDS_OWN,
        ],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-1000:]
    assert (tmp_path / "output" / "metrics.json").is_file() and not torch.load(
        tmp_path / "output" / FILES["neurons"], weights_only=True
    ).float().isnan().any()
    runs = list((tmp_path / "wandb").glob("offline-run-*"))
    assert len(runs) == 1 and next(runs[0].glob("*.wandb")).stat().st_size > 2000
    assert "offline" in done.stderr


@pytest.mark.slow
def test_a_model_that_was_downloaded_is_found_and_nothing_is_lost_by_asking_twice(tmp_path, data, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["download", "--tasks", "stsb", "squad", "--models", "tiny-bert", "--data-dir", str(data)]
    assert main(words) == 0 and "64 examples" not in capsys.readouterr().err
    assert {path.parent.name for path in (tmp_path / "checkpoints" / "tiny-bert").glob("*/config.json")} == {
        "stsb",
        "squad",
    }
    assert main(words) == 0 and capsys.readouterr().out.count("is there already") == 2
    assert (
        call(
            "--model_name",
            "tiny-bert",
            "--task_name",
            "stsb",
            "--num_epochs",
            0.5,
            "--data-dir",
            data,
            "--output_dir",
            "tuned",
        )
        == 0
    )
    assert (
        "pearson" in capsys.readouterr().out
        and (tmp_path / "tuned" / "config.json").is_file()
        and not (tmp_path / "tuned" / FILES["heads"]).exists()
    )
    assert (
        call(
            "--model_name",
            "tuned",
            "--task_name",
            "stsb",
            "--prune",
            "--freeze",
            "--num_epochs",
            0.5,
            "--data-dir",
            data,
            "--json",
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out)["learn_masks"] == "all"


@pytest.mark.parametrize(
    "words, says",
    [
        (["--learn_masks", "ffn"], "ffn_int"),
        (["--target_sparsity", "50"], "fraction"),
        (["--target_sparsity", "0.5", "--target_macs", "0.5"], "give one"),
        (["--gumbel_temp_anneal", "cosine"], "linear"),
        (["--gumbel_temp_end", "0"], "temperature"),
        (["--target_macs", "0.001"], "cannot be met"),
        (["--learn_masks", "ffn_out", "--target_macs", "0.5"], "target_sparsity"),
        (["--num_epochs", "0"], "num_epochs"),
        (["--masks_LR", "-1"], "masks_LR"),
        (["--freeze"], "no trained head"),
        (["--num_epochs", "many"], "num_epochs"),
    ],
)
def test_calls_that_cannot_work_say_why_in_one_sentence(words, says, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        code = call("--model_name", "tiny-bert", "--task_name", "sentiment", "--prune", *words)
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2 and says in error and len(error.strip().splitlines()) == 1, error
    assert not (tmp_path / "output").exists()


# --- a run that fails gives its folder back


def failing(monkeypatch, leaves=()):
    "Training that writes some files and fails."

    def train(*_, output, **__):
        for name in leaves:
            path = Path(output) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text('{"global_step": 1}')
        raise RunError("training failed.")

    monkeypatch.setattr("pruneresearch.recipes.train_masks.train_gates", train)


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("leaves", [(), ("checkpoint-1/optimizer.pt",)])
def test_a_run_that_fails_with_nothing_to_resume_gives_its_folder_back(
    there, leaves, tmp_path, monkeypatch, tiny_bert, sentiment
):
    failing(monkeypatch, leaves)
    out = tmp_path / "out"
    if there:
        out.mkdir()
    for epochs in (1, 2):  # the second call is another one, and is not refused
        with pytest.raises(RunError, match="training failed"):
            train_masks(deepcopy(tiny_bert), sentiment, num_epochs=epochs, output_dir=out)
        assert not there and not out.exists() or there and not list(out.iterdir())


def test_a_run_that_fails_with_something_to_resume_keeps_its_folder(tmp_path, monkeypatch, tiny_bert, sentiment):
    failing(monkeypatch, ["checkpoint-1/trainer_state.json"])
    with pytest.raises(RunError, match="training failed"):
        train_masks(deepcopy(tiny_bert), sentiment, num_epochs=1, output_dir=tmp_path)
    with pytest.raises(UsageError, match="another num_epochs"):
        train_masks(deepcopy(tiny_bert), sentiment, num_epochs=2, output_dir=tmp_path)


def test_gates_that_are_all_on_are_not_reported_as_success():
    report = dict(learn_masks="all", decided=1.0, kept=1.0, target=None, gated={"has_answer_exact_match": 0.0})
    report |= dict(parameters=dict(dense=5, pruned=5))
    nothing = _masks_summary(report | dict(off=0.0), SimpleNamespace(output_dir="out"))
    assert "nothing was pruned" in nothing and "100.0%" not in nothing
    assert "has_answer_exact_match  0.0000 with masks" in nothing
    assert "30.0% of the gates off · 100.0% of the gates within" in _masks_heading(report | dict(off=0.3))


def test_names_never_run_into_their_values():
    lines = aligned([("f1", "0.5"), ("has_answer_exact_match", "0.0000"), ("no_answer_exact_match", "1.0000")], 20)
    assert {line.split()[1] for line in lines} == {"0.5", "0.0000", "1.0000"}
    assert len({len(line) - len(line.split()[1]) for line in lines}) == 1
