"Bad requests, damaged files and full disks: one sentence, the right exit code, nothing half-written."

import json
import shutil
import subprocess
import sys

import pytest
import torch

from pruneresearch.basics.errors import UsageError
from pruneresearch.cli.main import main
from pruneresearch.model.loading import load_model, save_model
from pruneresearch.shipping.checkpoints import save_pruned

LLAMA = "prune --model tiny-llama --task pydocs"
BERT = "prune --model tiny-bert --task sentiment"


def told(capsys, words, code):
    "Run the command line; return its one sentence after checking exit code and form."
    assert main(words) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("pruneresearch: ") and "Traceback" not in lines[0]
    return lines[0]


@pytest.mark.parametrize(
    "command, says",
    [
        (f"{LLAMA} --method wonda --sparsity 0.5", "did you mean 'wanda'?"),
        (f"{LLAMA} --sparsity 50", "for 50 % say 0.5"),
        (f"{LLAMA} --sparsity 1.0", "fraction in [0, 1)"),
        (f"{LLAMA} --sparsity=-0.1", "fraction in [0, 1)"),
        (f"{LLAMA} --sparsity half", "sparsity must be a fraction such as 0.5"),
        (LLAMA, "no sparsity is given"),
        (f"{LLAMA} --pattern 2:5", "divisible by 5"),
        (f"{LLAMA} --pattern 4:2", "0 < N < M"),
        (f"{LLAMA} --pattern 2:4 --sparsity 0.7", "has sparsity 0.5"),
        (f"{LLAMA} --pattern heads --sparsity 0.5 --allocation row", "use layer or global or list"),
        (f"{LLAMA} --sparsity 0.5 --allocation fair", "known are"),
        (f"{LLAMA} --sparsity 0.5 --scope everything", "scope"),
        (f"{LLAMA} --sparsity 0.5 --schedule quintic", "known are"),
        (f"{LLAMA} --sparsity 0.5 --rounds 3", "several rounds need recovery"),
        (f"{LLAMA} --sparsity 0.5,0.5", "this model has 4 blocks"),
        ("prune --model tiny-llama --task sentiment --sparsity 0.5", "needs tiny-bert"),
        ("prune --model tiny-bert --task pydocs --sparsity 0.5", "needs tiny-llama"),
        ("prune --model mlp --task sentiment --sparsity 0.5", "plain network"),
        ("prune --model tiny-llama --task pydox --sparsity 0.5", "did you mean 'pydocs'?"),
        ("prune --model ./nowhere --task pydocs --sparsity 0.5", "is not a folder with a model"),
        ("evaluate --model tiny-bert --task nothing.txt", "does not exist"),
        ("evaluate --model tiny-bert --task nothing.jsonl", "task c4 with data_dir='nothing.jsonl'"),
        ("evaluate --model tiny-bert --task reviews.csv", "only a plain text file (.txt) is one by its path"),
        ("evaluate --model tiny-bert --task .", "is a folder, not a task"),
        ("evaluate --model tiny-llama --task pydocs --length 4096", "at most 128"),
        (f"{LLAMA} --method wanda --sparsity 0.5 --length 192", "at most 128"),
        ("prune --model tiny-bert --task sentiment --sparsity 0.5 --fine-tune --length 192", "at most 128"),
        ("train-masks --model tiny-bert --task sentiment --sparsity 0.5 --length 192", "at most 128"),
        ("prune --model tiny-llama", "--task"),
        ("evaluate --model tiny-bert --task sentiment", "no trained head"),
        ("bench --profile huge", "known are smoke, quick, tiny, small, paper"),
        ("bench nothing --profile tiny", "unknown benchmark"),
        ("bench --jobs 0", "at least 1"),
        ("list everything", "invalid choice"),
        ("conquer", "invalid choice"),
    ],
)
def test_bad_request(command, says, capsys):
    sentence = told(capsys, command.split(), 2)
    assert says in sentence, sentence


@pytest.mark.parametrize(
    "command, says",
    [
        ("evaluate --model nobody/nothing --task sentiment", "without network use one of"),
        ("evaluate --model tiny-brt --task sentiment", "did you mean 'tiny-bert'?"),
    ],
)
def test_a_hub_id_without_network(command, says, capsys):
    assert says in told(capsys, command.split(), 1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_model(load_model("tiny-llama"), tmp_path_factory.mktemp("saved") / "llama")


DAMAGE = {
    "weights cut short": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:5000]),
        "damaged or cut short",
        1,
    ),
    "empty weights": (lambda f: (f / "model.safetensors").write_bytes(b""), "damaged or cut short", 1),
    "config cut short": (
        lambda f: (f / "config.json").write_text((f / "config.json").read_text()[:40]),
        "not valid JSON",
        1,
    ),
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json", 2),
    "a shard missing": (
        lambda f: (f / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"a": "model-2.safetensors"}})
        ),
        "is missing",
        1,
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_checkpoint(damage, checkpoint, tmp_path, capsys):
    make, says, code = DAMAGE[damage]
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint, folder)
    make(folder)
    assert says in told(capsys, ["evaluate", "--model", str(folder), "--task", "pydocs"], code)


@pytest.mark.parametrize(
    "content, says",
    [
        ("", "empty"),
        ("sentence\tlabel\n", "no rows"),
        ("text\tlabel\ngood\t1\n", "sentence"),
        ("sentence\tlabel\ngood\t1\nbad\n", "line 3"),
        ("sentence\tlabel\ngood\tfive\n", "line 2"),
    ],
)
def test_malformed_table(content, says, tmp_path, capsys):
    folder = tmp_path / "SST-2"
    folder.mkdir()
    for name in ("train.tsv", "dev.tsv"):
        (folder / name).write_text(content)
    assert main(["evaluate", "--model", "tiny-bert", "--task", "glue/sst2", "--data-dir", str(tmp_path)]) in (1, 2)
    sentence = capsys.readouterr().err
    assert says in sentence and "SST-2" in sentence and len(sentence.strip().splitlines()) == 1


def test_output_folder_in_use(tmp_path, capsys):
    (tmp_path / "precious.txt").write_text("mine")
    assert "is not empty" in told(capsys, f"{LLAMA} --sparsity 0.5 --output {tmp_path}".split(), 2)
    assert [p.name for p in tmp_path.iterdir()] == ["precious.txt"]


@pytest.mark.parametrize(
    "more, says", [("", "nothing was written"), ("--method wanda --resume {}", "run the same command again to go on")]
)
def test_an_interrupted_command_says_what_is_kept(more, says, monkeypatch, tmp_path, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("pruneresearch.pruning.engine.prune", interrupted)
    assert says in told(capsys, f"{LLAMA} --sparsity 0.5 {more.format(tmp_path)}".split(), 1)


def test_full_disk(small_disk, capsys):
    sentence = told(
        capsys,
        f"prune --model tiny-llama --task pydocs --sparsity 0.5 --length 16 --output {small_disk}/out".split(),
        1,
    )
    assert "the disk is full" in sentence
    assert list(small_disk.iterdir()) == []


def test_killed_while_writing(tmp_path):
    "SIGKILL while the checkpoint is being written leaves no checkpoint under its name."
    script = f"""
import os, signal
from pruneresearch.model import loading as models
from safetensors import torch as st
write = st.save_file
def dying(*a, **k): write(*a, **k); os.kill(os.getpid(), signal.SIGKILL)
st.save_file = dying
models.save_model(models.load_model("mlp"), {str(tmp_path / "out")!r})
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True)
    assert done.returncode == -9 and not (tmp_path / "out").exists()


def test_debug_shows_the_traceback(capsys):
    with pytest.raises(ValueError):
        main(f"{LLAMA} --sparsity 50 --debug".split())


def test_labels_missing():
    from pruneresearch.pruning.engine import prune

    with pytest.raises(UsageError, match="labels"):
        prune(
            load_model("tiny-llama"),
            calibration=[dict(input_ids=torch.ones(2, 8, dtype=torch.long))],
            method="taylor",
            sparsity=0.5,
        )


def test_a_reader_that_stops_early():
    process = subprocess.Popen(
        [sys.executable, "-m", "pruneresearch.cli", "list", "tasks"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait(60) == 0


@pytest.mark.parametrize("width", [None, 100, 130])
def test_a_listing_fits_the_terminal(width, monkeypatch, capsys):
    from pruneresearch.pruning.registry import list_methods

    monkeypatch.delenv("COLUMNS", raising=False)
    if width:
        monkeypatch.setenv("COLUMNS", str(width))
    assert main(["list", "methods"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert len(lines) == 1 + len(list_methods()) if width is None else max(map(len, lines)) <= width
    words = " ".join(lines).split()
    for method in list_methods():
        assert not set(method["formula"].split() + method["source"].split()) - set(words), method


# ---- known before the work


@pytest.fixture
def sampler(checkpoint, tmp_path):
    "A checkpoint whose generation settings transformers loads, and refuses to save."
    folder = shutil.copytree(checkpoint, tmp_path / "sampler")
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(settings | {"temperature": 0.6, "top_p": 0.9}))
    return folder


@pytest.mark.parametrize("command", ["prune", "prune --stream", "export --format dense"])
def test_settings_that_cannot_be_saved_are_found_before_the_work(command, sampler, tmp_path, monkeypatch, capsys):
    def no(*_, **__):
        raise AssertionError("this is work")

    for work in ("pruning.engine.prune", "shipping.stream.calibration_batches", "measure.quality.evaluate_model"):
        monkeypatch.setattr(f"pruneresearch.{work}", no)
    words = [*command.split(), "--model", str(sampler), "--task", "pydocs", "--output", str(tmp_path / "out")]
    words += ["--sparsity", "0.5", "--method", "wanda"] * ("prune" in command)
    sentence = told(capsys, words, 2)
    assert "(temperature, top_p)" in sentence and "generation_config.json" in sentence
    assert not (tmp_path / "out").exists()


def test_settings_that_cannot_be_saved_are_no_obstacle_where_nothing_is_saved(sampler):
    require = pytest.raises(UsageError, match="temperature, top_p")
    with require:
        save_pruned(load_model(sampler), sampler.parent / "out")
    load_model(sampler)
    assert not (sampler.parent / "out").exists()


def test_a_random_head_stays_one_in_its_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main("download --models tiny-bert --tasks sentiment".split()) == 0
    capsys.readouterr()
    folder = "checkpoints/tiny-bert/sentiment"
    for words in (
        f"evaluate --model {folder} --task sentiment",
        f"export --model {folder} --task sentiment --format dense --output out",
        f"prune --model {folder} --task sentiment --sparsity 0.5",
        "train-masks --model_name tiny-bert --task_name sentiment --prune --freeze",
    ):
        assert "no trained head" in told(capsys, words.split(), 2)
    shutil.move(folder, "elsewhere")
    assert "no trained head" in told(capsys, "evaluate --model elsewhere --task sentiment".split(), 2)
