"Models: what importing their rooms costs, and what an evaluation leaves unimported."

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload

from pruneresearch.basics.errors import UsageError
from pruneresearch.measure.quality import evaluate_model
from pruneresearch.model.calls import tokenizer_of
from pruneresearch.model.loading import empty_model, load_model, save_model
from pruneresearch.pruning.engine import prune
from pruneresearch.shipping.checkpoints import load_pruned, open_model, save_pruned
from pruneresearch.shipping.stream import prune_stream
from pruneresearch.training.recovery import recover

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


# --- what is random, and what is not there at all


def test_the_note_about_a_random_head_follows_its_weights(tmp_path, sentiment):
    model = load_model("tiny-bert", sentiment, device="cpu")
    names = model.untrained
    folder = save_model(model, tmp_path / "random")
    for dtype in ("float32", "bfloat16"):
        assert load_model(folder, sentiment, dtype=dtype).untrained == names
    save_pruned(load_model(folder, sentiment), tmp_path / "pruned", certificate=False)
    assert load_pruned(tmp_path / "pruned").untrained == names
    with torch.no_grad():
        model.classifier.weight.add_(0.1)
    model.save_pretrained(folder)  # trained by another program, into the same folder
    assert "classifier.weight" not in load_model(folder, sentiment).untrained
    model.untrained = []  # as `recover` leaves it
    assert load_model(save_model(model, tmp_path / "trained"), sentiment).untrained == []


def test_a_stream_keeps_the_note_about_a_random_head(tmp_path, sentiment):
    model = load_model("tiny-bert", sentiment, device="cpu")
    folder = save_model(model, tmp_path / "random")
    prune_stream(folder, tmp_path / "out", method="magnitude", sparsity=0.5)
    assert open_model(tmp_path / "out").untrained == model.untrained


@pytest.mark.parametrize("place", ["meta", "offloaded"])
def test_weights_that_are_not_in_memory_are_refused(place, tmp_path, pydocs):
    model = empty_model("tiny-llama") if place == "meta" else load_model("tiny-llama", device="cpu")
    if place == "offloaded":
        weights = {name: weight.clone() for name, weight in model.state_dict().items()}
        cpu_offload(model, torch.device("cpu"))
    uses = {
        "prune": lambda: prune(model, method="magnitude", sparsity=0.5),
        "evaluate": lambda: evaluate_model(model, pydocs),
        "recover": lambda: recover(model, pydocs),
        "save": lambda: save_model(model, tmp_path / "out"),
        "ship": lambda: save_pruned(model, tmp_path / "out"),
    }
    for use in uses.values():
        with pytest.raises(UsageError, match="not in memory .*device='cuda' and offload='cpu'.*--stream"):
            use()
    assert not list(tmp_path.iterdir())
    if place == "offloaded":
        kept = model.model.layers[0].mlp.down_proj._hf_hook.weights_map["weight"]
        assert torch.equal(kept, weights["model.layers.0.mlp.down_proj.weight"])


def test_a_model_loaded_elsewhere_from_an_old_folder_finds_its_tokenizer(tmp_path):
    from transformers import BertConfig, BertModel

    BertModel(BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(
        tmp_path
    )
    config = json.loads((tmp_path / "config.json").read_text())
    del config["model_type"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad"]))
    tokenizer = tokenizer_of(BertModel.from_pretrained(tmp_path))
    assert tokenizer("good bad").input_ids == [2, 5, 6, 3]
