"""Two processes under a launcher prune, train, write and fail like one.

Run as a program, this file is what each of them does.
"""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from pruneresearch.basics.errors import RunError, UsageError
from pruneresearch.basics.fingerprints import fingerprint
from pruneresearch.cli import main as cli
from pruneresearch.cli.main import main
from pruneresearch.data.tasks import first_examples, load_task
from pruneresearch.measure.quality import evaluate_model
from pruneresearch.model.loading import load_model
from pruneresearch.pruning import decisions
from pruneresearch.pruning.engine import prune
from pruneresearch.pruning.masks import Masks
from pruneresearch.pruning.packing import pack_mask
from pruneresearch.pruning.resume import weights_hash
from pruneresearch.training import distributed as ranks
from pruneresearch.training import recovery
from pruneresearch.training.gates import train_gates
from pruneresearch.training.recovery import last_whole_checkpoint, recover, require_same_weights
from pruneresearch.training.trainer import trim_last_batch

METHODS = ("random", "wanda", "sparsegpt", "taylor")
CLI = "prune --model mlp --task digits --sparsity 0.8 --recovery fine-tune --json --output"


def hashed(tensors):
    return fingerprint(
        {
            name: pack_mask(tensor)[0].tobytes().hex() if tensor.dtype == torch.bool else tensor.numpy().tobytes().hex()
            for name, tensor in tensors.items()
        }
    )


def pruned(name, task, method, **options):
    "Hashes of scores, masks and weights."
    scores, score = {}, decisions.weight_scores

    def watched(*args):
        found = score(*args)
        scores.update(found)
        return found

    decisions.weight_scores = watched
    try:
        model = load_model(name, task)
        masks = prune(model, task, method=method, sparsity=0.5, n_calibration=8, length=64, seed=3, **options).masks
    finally:
        decisions.weight_scores = score
    return hashed(scores), hashed(masks.keep), weights_hash(model)


def all_pruned():
    tasks = {"tiny-bert": load_task("sentiment"), "tiny-llama": load_task("pydocs")}
    return {f"{name} {method}": pruned(name, task, method) for name, task in tasks.items() for method in METHODS}


def trained(**options):
    "The perceptron, two epochs of which the last batch is not full, masks held: (model, masks, steps and loss)."
    digits = load_task("digits")
    model = load_model("mlp", digits)
    masks = prune(model, method="magnitude", sparsity=0.8).masks
    return model, masks, recover(model, digits, masks=masks, epochs=2, batch_size=32, **options)


def distilled():
    """tiny-bert from its dense self.

    Without dropout, which draws per process; with SGD, because AdamW makes whole steps of the rounding noise of a
    gradient that is zero.
    """
    task = first_examples(load_task("sentiment"), 200)
    model = load_model("tiny-bert", task)
    for layer in (m for m in model.modules() if isinstance(m, torch.nn.Dropout)):
        layer.p = 0.0
    teacher = copy.deepcopy(model)
    masks = prune(model, task, method="magnitude", sparsity=0.7).masks
    return (
        model,
        masks,
        recover(
            model,
            task,
            masks=masks,
            teacher=teacher,
            batch_size=16,
            optimizer="sgd",
            learning_rate=1e-2,
            gradient_accumulation_steps=2,
        ),
    )


def in_rounds():
    "Gradients of a model that was trained by several processes: nothing of them is left on it."
    digits = load_task("digits")
    model = load_model("mlp", digits)
    prune(
        model,
        digits,
        method="taylor",
        sparsity=0.8,
        schedule="linear",
        rounds=2,
        between=lambda model, masks: recover(model, digits, masks=masks, epochs=0.2, batch_size=32),
    )
    recover(model, digits, epochs=0.2, batch_size=32)
    return model


def said(function, *args, **options):
    try:
        function(*args, **options)
    except (RunError, UsageError) as error:
        return f"{type(error).__name__}: {error}"


def work(folder):
    """What each process does, and what it leaves for the tests to look at.

    A command, which stays in the process group here, then calls of the library.
    """
    cli.leave_process_group = lambda: None
    assert main([*CLI.split(), str(folder / "out")]) == 0
    digits, found = (
        load_task("digits"),
        {
            "pruned": all_pruned(),
            "kept": pruned("tiny-llama", load_task("pydocs"), "wanda", resume=folder / "blocks"),
        },
    )
    for name, run in (("trained", trained), ("distilled", distilled)):
        model, masks, found[name] = run()
        masks.verify(model)
        found[f"{name} hash"], found[f"{name} alive"] = (
            weights_hash(model),
            sum(int(dict(model.named_parameters())[key][~keep].count_nonzero()) for key, keep in masks.keep.items()),
        )
        if ranks.rank() == 0:
            torch.save(model.state_dict(), folder / f"{name}.pt")
    resumed, masks, _ = trained(output=folder / "interrupted")
    found |= {
        "resumed hash": weights_hash(resumed),
        "rounds hash": weights_hash(in_rounds()),
        "odd": said(recover, load_model("mlp", digits), digits, batch_size=15),
    }
    if ranks.rank() == 1:
        resumed.layers[0].bias.data[0] += 1
    found["differs"] = said(require_same_weights, resumed)
    masks.keep = {name: keep ^ (ranks.rank() == 1) for name, keep in masks.keep.items()}
    found["other masks"] = said(recover, resumed, digits, masks=masks, batch_size=16)
    (folder / f"rank{ranks.rank()}.json").write_text(json.dumps(found))
    ranks.leave_process_group()


def failing(folder):
    "A command that trains with checkpoints; process 1 fails when it should leave its part of the third one."
    save, train = transformers.Trainer._save_rng_state, recovery.recover

    def broken(self, path):
        if self.state.global_step == 27 and ranks.rank() == 1:
            raise RunError("process 1 has lost its data.")
        save(self, path)

    transformers.Trainer._save_rng_state = broken
    recovery.recover = lambda model, task, **options: train(
        model, task, output=folder / "interrupted", **options | dict(epochs=2)
    )
    sys.exit(main([*CLI.split(), str(folder / "failed")]))


def launched(*words, timeout=500):
    "Exit code, stdout and stderr of two processes."
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.terminate()
            raise
    return process.returncode, out, err


def close(state, model):
    "A sum in two halves rounds differently, by some units of 6e-8 for a weight below 1."
    for name, weight in state.items():
        assert torch.allclose(weight, model.state_dict()[name], rtol=0, atol=2e-6), name


def sentences(err):
    return [line for line in err.splitlines() if line.startswith("pruneresearch: ")]


@pytest.fixture(scope="module")
def alone():
    "What one process does; with one thread, as the launcher gives each of its own."
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield {"pruned": json.loads(json.dumps(all_pruned())), "trained": trained(), "distilled": distilled()}
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def interrupted(folder):
    "A command whose second process fails: exit code, stdout, stderr, newest whole checkpoint."
    done = launched(__file__, "failing", folder)
    shutil.copytree(folder / "interrupted", folder / "copy")
    return *done, last_whole_checkpoint(folder / "copy")


@pytest.fixture(scope="module")
def together(folder, interrupted):
    "What each of two processes found, and what both printed."
    code, out, err = launched(__file__, "work", folder)
    assert code == 0, err
    return [dict(printed=(out, err)) | json.loads((folder / f"rank{place}.json").read_text()) for place in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", ["tiny-bert", "tiny-llama"])
def test_scores_masks_and_weights_are_those_of_one_process(alone, together, model, method):
    for found in together:
        assert found["pruned"][f"{model} {method}"] == alone["pruned"][f"{model} {method}"]


@pytest.mark.slow
def test_processes_may_keep_finished_blocks_in_one_folder(alone, together):
    "One may find there what the other has done, and scores nothing: masks and weights are the same."
    for found in together:
        assert found["kept"][1:] == alone["pruned"]["tiny-llama wanda"][1:]


@pytest.mark.slow
def test_the_hashes_would_tell(alone):
    assert len({hashes[1] for hashes in alone["pruned"].values()}) == 2 * len(METHODS)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["trained", "distilled"])
def test_masks_hold_in_every_process_and_weights_are_equal(together, what):
    assert [found[f"{what} alive"] for found in together] == [0, 0]
    assert together[0][f"{what} hash"] == together[1][f"{what} hash"]
    assert together[0][what] == together[1][what]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["trained", "distilled"])
def test_two_processes_take_the_steps_of_one(alone, together, folder, what):
    model, _, done = alone[what]
    assert together[0][what]["steps"] == done["steps"] and together[0][what]["loss"] == pytest.approx(
        done["loss"], rel=1e-5
    )
    close(torch.load(folder / f"{what}.pt"), model)


@pytest.mark.slow
def test_after_training_gradients_are_each_process_s_own(together):
    assert together[0]["rounds hash"] == together[1]["rounds hash"]


@pytest.mark.slow
def test_a_batch_that_does_not_divide_is_refused(together):
    for found in together:
        assert (
            found["odd"]
            == "UsageError: a batch of 15 does not divide among 2 processes: set batch_size to a multiple of 2."
        )


@pytest.mark.slow
def test_processes_that_differ_are_named(together):
    for found in together:
        assert found["differs"].startswith("RunError: the weights of process 1 are not those of process 0")
    for found in together:
        assert found["other masks"].startswith("RunError: the masks of process 1 are not those of process 0")


@pytest.mark.slow
def test_a_failing_process_ends_all_with_one_sentence(interrupted, folder):
    code, out, err, _ = interrupted
    assert code != 0 and out == "" and sentences(err) == ["pruneresearch: process 1 has lost its data."]
    assert not (folder / "failed").exists()


@pytest.mark.slow
def test_a_checkpoint_that_misses_the_part_of_a_process_is_not_whole(interrupted):
    assert interrupted[-1].endswith("checkpoint-18")


@pytest.mark.slow
def test_an_interrupted_run_resumes_to_the_same_weights(together):
    for found in together:
        assert found["resumed hash"] == found["trained hash"]


@pytest.mark.slow
def test_another_number_of_processes_resumes_too(alone, interrupted, folder):
    close(trained(output=folder / "copy")[0].state_dict(), alone["trained"][0])


@pytest.mark.slow
def test_the_command_writes_and_tells_once(together, folder):
    out, err = together[0]["printed"]
    report = json.loads(out)
    assert (
        not sentences(err)
        and not list(folder.glob(".out*"))
        and json.loads((folder / "out/pruning.json").read_text()) == report
    )
    model = load_model(folder / "out", load_task("digits"))
    Masks.load(folder / "out/masks.safetensors").verify(model)
    assert report["achieved"] == pytest.approx(0.8, abs=1e-4) and report["pruned"] == evaluate_model(
        model, load_task("digits")
    )


@pytest.mark.slow
def test_a_command_for_one_process_is_refused_once():
    code, out, err = launched("-m", "pruneresearch.cli", "report")
    assert (
        code != 0
        and out == ""
        and len(sentences(err)) == 1
        and "runs in one process, and 2 were started" in sentences(err)[0]
    )


def test_what_needs_one_process_says_so(monkeypatch):
    from pruneresearch.lab.experiment import Config, check

    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="an experiment runs in one process"):
        check(Config("mlp", "digits", "magnitude", 0.5))
    with pytest.raises(UsageError, match="training gates runs in one process"):
        train_gates(None, None, None, None)


@pytest.mark.parametrize("left", [1, 5, 8, 9, 15])
def test_shares_make_the_mean_over_processes_the_mean_over_examples(left):
    values = torch.rand(16, 1, generator=torch.Generator().manual_seed(left)).double()
    parts = [trim_last_batch({"inputs": values[place * 4 : place * 4 + 4]}, left, place, 4) for place in range(4)]
    assert torch.allclose(
        sum(part["share"] * part["inputs"].mean() for part in parts) / 4, values[:left].mean(), rtol=1e-6
    )


def test_more_processes_than_devices_are_refused(monkeypatch, capsys):
    for name, value in dict(LOCAL_RANK="1", RANK="1", WORLD_SIZE="2").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert main(CLI.split()) == 2 and capsys.readouterr().err.startswith(
        "pruneresearch: local rank 1 (counted from 0) has no GPU, this machine has 1"
    )


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
