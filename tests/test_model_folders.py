"Files of strangers: nothing in them runs, nothing elsewhere is touched, nothing asks for more than is there."

import builtins
import json
import os
import pickle
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from hub import cache_model
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from test_cli_bad_input import told
from test_fuzz import tokenized
from test_shipping_checkpoints import made
from transformers import BertConfig

from pruneresearch.basics.errors import RunError, UsageError
from pruneresearch.basics.files import read_json, write_json
from pruneresearch.cli.main import main
from pruneresearch.data.tasks import load_task
from pruneresearch.lab.rows import load_rows
from pruneresearch.model.folders import local_folder, named_type
from pruneresearch.model.loading import load_model, save_model
from pruneresearch.model.mlp import SimpleMLP
from pruneresearch.pruning.engine import prune
from pruneresearch.pruning.resume import finished_blocks, restore_block, store_block
from pruneresearch.shipping.checkpoints import load_pruned, open_model, read_tensors, save_pruned
from pruneresearch.shipping.stream import prune_stream
from pruneresearch.training.recovery import last_whole_checkpoint, recover


class Bomb:
    "A pickle that makes a file when it is opened."

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def harmless(loading, folder, fired, words):
    "It is refused in one sentence, and the bomb has not gone off."
    with pytest.raises((UsageError, RunError), match=words) as caught:
        loading(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600 and not fired.exists()


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    "A plain checkpoint."
    return save_model(tokenized("bert", "tiny-bert"), tmp_path_factory.mktemp("bert") / "model")


@pytest.fixture
def copied(bert, tmp_path):
    return shutil.copytree(bert, tmp_path / "copy")


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pruned") / "model"
    save_pruned(made("bert"), folder, certificate=False)
    return folder


# ---- nothing runs


def test_the_bomb_works(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "fired")))
    assert (tmp_path / "fired").exists()


@pytest.mark.parametrize(
    "write",
    [
        lambda bomb, path: torch.save({"bert.pooler.dense.weight": bomb}, path),
        lambda bomb, path: path.write_bytes(pickle.dumps({"weight": bomb, "more": [0.5] * 2000})),
    ],
)
@pytest.mark.parametrize("sharded", [False, True])
def test_pickled_weights_hold_tensors_or_are_refused(write, sharded, copied, tmp_path, capsys):
    fired, weights = tmp_path / "fired", copied / ("shard.bin" if sharded else "pytorch_model.bin")
    state = load_file(copied / "model.safetensors")
    (copied / "model.safetensors").unlink()
    if sharded:
        write_json(
            copied / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": dict.fromkeys(state, weights.name)}
        )
    torch.save(state, weights)
    assert torch.equal(
        load_model(copied).state_dict()["classifier.weight"].cpu(), state["classifier.weight"]
    )  # no more than tensors: an old checkpoint
    write(Bomb(fired), weights)
    harmless(load_model, copied, fired, "not opened: ask its author for safetensors")
    assert (
        "safetensors" in told(capsys, ["evaluate", "--model", str(copied), "--task", "sentiment"], 1)
        and not fired.exists()
    )


def with_code(folder, fired, model_type):
    "A checkpoint that brings a module; it runs when it is imported."
    (folder / "own.py").write_text(
        f"import os; os.makedirs({str(fired)!r}, exist_ok=True)\n"
        "from transformers import BertConfig, BertForSequenceClassification, BertTokenizer\n"
        f"class OwnConfig(BertConfig): model_type = {model_type!r}\n"
        "class OwnModel(BertForSequenceClassification): config_class = OwnConfig\n"
        "class OwnTokenizer(BertTokenizer): pass\n"
    )
    classes = {
        "AutoConfig": "own.OwnConfig",
        **dict.fromkeys(("AutoModel", "AutoModelForSequenceClassification"), "own.OwnModel"),
    }
    write_json(
        folder / "config.json", read_json(folder / "config.json") | {"model_type": model_type, "auto_map": classes}
    )


def nobody(*_):
    raise AssertionError("nobody is there to be asked")


def test_code_of_a_checkpoint_runs_for_those_who_ask_for_it_only(copied, pruned, tmp_path, monkeypatch, capsys):
    import transformers.dynamic_module_utils as dynamic

    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(builtins, "input", nobody)
    fired, other = tmp_path / "fired", shutil.copytree(pruned, tmp_path / "pruned")
    for folder in (copied, other):
        with_code(folder, fired, "own")
    for loading in (load_model, open_model):
        harmless(loading, copied, fired, r"trust_remote_code=True \(--trust-remote-code\)")
    harmless(load_pruned, other, fired, "code of its own|trust_remote_code")
    assert "--trust-remote-code" in told(capsys, ["evaluate", "--model", str(copied), "--task", "sentiment"], 2)
    with_code(copied, fired, "bert")  # transformers has a class of its own for it, and takes that
    assert type(load_model(copied)).__module__.startswith("transformers.") and not fired.exists()
    tokenizer = read_json(copied / "tokenizer_config.json")
    write_json(
        copied / "tokenizer_config.json",
        tokenizer
        | {"auto_map": {"AutoTokenizer": ["own.OwnTokenizer", "own.OwnTokenizer"]}, "tokenizer_class": "OwnTokenizer"},
    )
    try:
        load_model(copied)
    except (UsageError, RunError):
        pass
    assert not fired.exists()
    write_json(copied / "tokenizer_config.json", tokenizer)
    with_code(copied, fired, "own")
    load_model(copied, trust_remote_code=True)
    assert fired.exists()


def entries(file, **changes):
    return lambda folder: write_json(folder / file, read_json(folder / file) | changes)


def adapter(folder):
    write_json(folder / "adapter_config.json", {"base_model_name_or_path": "../elsewhere", "peft_type": "LORA"})


@pytest.mark.parametrize(
    "change, words",
    [
        (entries("config.json", attn_implementation="nobody/kernels"), "code from 'nobody/kernels'"),
        (entries("config.json", _attn_implementation={"": "nobody/kernels@main:flash"}), "code from"),
        (entries("config.json", experts_implementation="nobody/kernels"), "code from"),
        (entries("config.json", transformers_weights="weights.safetensors.index.json"), "usual names"),
        (adapter, "adapter"),
        (entries("config.json", quantization_config={"quant_method": "gptq", "bits": 4}), r"quantised \('gptq'\)"),
        (entries("config.json", quantization_config={"load_in_8bit": True}), "are quantised, and only"),
        (lambda folder: write_json(folder / "quantize_config.json", {"bits": 4}), "are quantised, and only"),
    ],
)
def test_kernels_adapters_and_weights_of_another_name_are_refused(change, words, copied):
    change(copied)
    with pytest.raises((UsageError, RunError), match=words):
        load_model(copied)


@pytest.mark.parametrize(
    "files, words",
    [
        (
            {"adapter_config.json": '{"base_model_name_or_path": "meta-llama/Llama-3.2-1B"}'},
            "without its base model 'meta",
        ),
        ({"model-Q4_K_M.gguf": "GGUF"}, "GGUF weights .model-Q4_K_M.gguf."),
        ({"config.json": "{}", "model.gguf": "GGUF"}, "name the transformers checkpoint that they were made from"),
        ({"config.json": "{}", "tf_model.h5": ""}, "TensorFlow weights"),
        ({"config.json": "{}", "flax_model.msgpack": ""}, "Flax weights"),
        ({"model.onnx": ""}, "ONNX weights"),
        ({"consolidated.00.pth": "", "params.json": "{}"}, "another program's weights"),
    ],
)
def test_a_folder_in_another_format_is_told_what_it_is(files, words, tmp_path, capsys):
    folder = tmp_path / "model"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    with pytest.raises(UsageError, match=words) as caught:
        load_model(folder)
    assert "damaged" not in str(caught.value)
    assert str(caught.value) in told(capsys, ["evaluate", "--model", str(folder), "--task", "sentiment"], 2)


def test_a_gguf_file_is_told_what_it_is(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(UsageError, match="holds GGUF weights"):
        load_model(tmp_path / "model.gguf")


def answered(error_class):
    "What transformers raises where the hub has answered so."
    response = SimpleNamespace(headers={}, request=None, status_code=403)
    error = OSError("You are trying to access something.")
    error.__cause__ = error_class("403 Client Error", response=response)
    return error


@pytest.mark.parametrize(
    "error, words",
    [
        (
            answered(GatedRepoError),
            "gated at the hub: accept its licence at https://huggingface.co/meta-llama/x, and set HF_TOKEN",
        ),
        (answered(RepositoryNotFoundError), "or it is private: check its spelling, or set HF_TOKEN"),
        (OSError("meta-llama/x does not appear to have a file named config.json."), "no config.json at the hub: merge"),
        (OSError("no route to host"), "without network use one of"),
    ],
)
def test_why_the_hub_refused_is_said(error, words, monkeypatch, capsys):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr("transformers.PreTrainedConfig.get_config_dict", refuse)
    assert words in told(capsys, ["evaluate", "--model", "meta-llama/x", "--task", "sentiment"], 1)


def test_a_quantised_hub_model_is_refused_before_its_download(monkeypatch):
    config = BertConfig(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    monkeypatch.setattr("transformers.PreTrainedConfig.get_config_dict", lambda *_, **__: (config.to_dict(), {}))
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda *_, **__: config)
    with pytest.raises(UsageError, match="'somebody/model' are quantised .'bitsandbytes'.*name the checkpoint"):
        load_model("somebody/model")


@pytest.mark.parametrize(
    "name",
    [
        "pipeline",
        "AutoModel",
        "Trainer",
        "PreTrainedModel",
        "GenerationConfig",
        "__loader__",
        "../../x",
        "LlamaForCausalLM",
    ],
)
def test_only_models_are_made_from_names(name, copied, pruned, tmp_path):
    entries("config.json", architectures=[name])(copied)
    assert type(load_model(copied)).__name__ == "BertModel"  # as for a name that is not known at all
    other = shutil.copytree(pruned, tmp_path / "pruned")
    entries("pruned.json", architecture=name)(other)
    with pytest.raises(RunError, match="has no model"):
        load_pruned(other)


def test_a_checkpoint_of_the_trainer_runs_nothing_either(tmp_path):
    task, fired = load_task("digits"), tmp_path / "fired"

    def train():
        recover(load_model("mlp"), task, epochs=0.5, output=tmp_path / "run")

    train()
    newest = Path(last_whole_checkpoint(tmp_path / "run"))
    torch.save({"state": Bomb(fired)}, newest / "optimizer.pt")
    with pytest.raises(RunError, match="more than tensors and numbers: delete it"):
        train()
    assert not fired.exists()


# ---- nothing outside


@pytest.mark.parametrize("place", ["../other.safetensors", "{absolute}", "below/other.safetensors", "..", ""])
@pytest.mark.parametrize("which", ["index", "pickled index", "pruned"])
def test_names_in_files_do_not_lead_elsewhere(which, place, copied, pruned, tmp_path):
    folder = shutil.copytree(pruned, tmp_path / "pruned") if which == "pruned" else copied
    (folder / "below").mkdir()
    for path in (tmp_path / "other.safetensors", folder / "below" / "other.safetensors"):
        shutil.copy(folder / "model.safetensors", path)
    name = place.format(absolute=tmp_path / "other.safetensors")
    if which == "pruned":
        entries("pruned.json", files={name: "0"})(folder)
    else:
        names = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        write_json(
            folder / f"{'model.safetensors' if which == 'index' else 'pytorch_model.bin'}.index.json",
            {"metadata": {}, "weight_map": dict.fromkeys(names, name)},
        )
    with pytest.raises(RunError, match="which is not one beside it"):
        open_model(folder)


@pytest.mark.parametrize(
    "words, says",
    [
        (["download", "--models", "../../tiny-bert", "--tasks", "sentiment"], "leads out of the folder 'checkpoints'"),
        (["download", "--models", "{root}/tiny-bert", "--tasks", "sentiment"], "leads out"),
        (["download", "--models", "tiny-llama", "--tasks", "../../own.txt"], "leads out"),
        (["download", "--models", "tiny-llama", "--tasks", "{root}/own.txt"], "leads out"),
        (["train-masks", "--model_name", "../../victim", "--task_name", "sentiment"], "is not a folder with a model"),
        (["bench", "../../victim"], "unknown benchmark"),
        (["report", "--profile", "../../victim"], "unknown profile"),
        (["prune", "--model", "tiny-bert", "--task", "../../victim", "--sparsity", "0.5"], "unknown task"),
    ],
)
def test_names_on_the_command_line_do_not_lead_elsewhere(words, says, bert, tmp_path, monkeypatch, capsys):
    work = tmp_path / "a" / "b"
    work.mkdir(parents=True)
    (tmp_path / "own.txt").write_text("\n\n".join(f"Paragraph {i} is short." for i in range(60)))
    shutil.copytree(bert, tmp_path / "a" / "victim" / "sentiment")  # what checkpoints/../../victim/sentiment would be
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(work)
    assert says in told(capsys, [word.format(root=tmp_path) for word in words], 2)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_model_elsewhere_is_opened_where_it_lies(bert, tmp_path, monkeypatch, capsys):
    (tmp_path / "work").mkdir()
    shutil.copytree(bert, tmp_path / "mine")
    monkeypatch.chdir(tmp_path / "work")
    assert (
        main(
            [
                "train-masks",
                "--model_name",
                "../mine",
                "--task_name",
                "sentiment",
                "--prune",
                "--freeze",
                "--learn_masks",
                "ffn",
            ]
        )
        == 2
    )
    assert "ffn_int" in capsys.readouterr().err  # the model was found, the kind of mask was not


# ---- nothing more than is there

CLAIMS = {
    "blocks": {"num_hidden_layers": 10**9},
    "labels": {"num_labels": 10**9},
    "words": {"vocab_size": 10**12},
    "positions": {"max_position_embeddings": 10**12},
    "neurons": {"intermediate_size": 10**12},
    "GPT-Neo's repeats": {"model_type": "gpt_neo", "num_layers": 2, "attention_types": [[["global"], 10**9]]},
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_configuration_cannot_ask_for_more_than_its_weights_hold(claim, copied, pruned, tmp_path):
    other, started = shutil.copytree(pruned, tmp_path / "pruned"), time.process_time()
    for folder in (copied, other):
        entries("config.json", **CLAIMS[claim])(folder)
        with pytest.raises(RunError, match="more (blocks|labels|numbers)"):
            open_model(folder)
    assert time.process_time() - started < 10


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_dims": [10**9, 10**9]},
        {"input_dim": -1},
        {"hidden_dims": ["6"]},
        {"output_dim": 10**30},
        {"hidden_dims": [True]},
    ],
)
def test_a_perceptron_cannot_ask_for_more_either(changes, tmp_path):
    folder = save_model(SimpleMLP(8, [6], 3), tmp_path / "mlp")
    entries("config.json", **changes)(folder)
    with pytest.raises(RunError):
        load_model(folder)


@pytest.mark.parametrize(
    "shapes", [{"w": [10**9, 10**9]}, {"w": [-2, -3]}, {"w": "2"}, ["w"], {"w": [2, True]}, {"x": [2, 3]}]
)
def test_sparse_shapes_must_fit_their_bits(shapes, tmp_path):
    parts = {"w.bits": torch.tensor([0b10100000], dtype=torch.uint8), "w.values": torch.tensor([1.0, 2.0])}

    def write(shapes):
        save_file(parts, tmp_path / "w.sparse.safetensors", metadata={"shapes": json.dumps(shapes)})

    write({"w": [2, 3]})
    assert read_tensors(tmp_path / "w.sparse.safetensors")["w"].tolist() == [[1, 0, 2], [0, 0, 0]]
    write(shapes)
    with pytest.raises(RunError, match="w.sparse.safetensors' is damaged"):
        read_tensors(tmp_path / "w.sparse.safetensors")


# ---- damage to what this library keeps for itself


def test_a_finished_block_that_is_damaged_changes_nothing(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
    keep = {"0.weight": torch.ones(3, 4, dtype=torch.bool)}
    store_block(tmp_path, "this", model, 0, keep, torch.Generator())
    before = [p.clone() for p in model.parameters()]
    assert restore_block(finished_blocks(tmp_path, "this", model, 1)[0], model).keys() == keep.keys()
    for tensors in (
        {"keep:0.weight": keep["0.weight"]},
        {"keep:0.weight": keep["0.weight"], "weight:0.weight": torch.ones(3, 5)},
        {"keep:9.weight": keep["0.weight"], "weight:9.weight": torch.ones(3, 4)},
        {"keep:0.weight": torch.ones(3, 4), "weight:0.weight": torch.ones(3, 4)},
    ):
        save_file(
            tensors | {"generator": torch.Generator().get_state()},
            tmp_path / "block-0000.safetensors",
            metadata={"request": "this"},
        )
        with pytest.raises(RunError, match="is damaged. Delete it"):
            finished_blocks(tmp_path, "this", model, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_folders_that_are_no_checkpoints_of_a_run_are_passed_over(tmp_path):
    for name, content in (
        ("checkpoint-3", '{"global_step": 3}'),
        ("checkpoint-last", '{"global_step": 9}'),
        ("checkpoint-7", "[" * 100_000),
        ("checkpoint-8", '"text"'),
        ("checkpoint-9", "\xff"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "trainer_state.json").write_text(content, encoding="latin-1")
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-3")


@pytest.mark.parametrize(
    "content, says",
    [
        ("[1]", "an object"),
        ('{"id": "a"}', "no field 'model'"),
        ("[" * 100_000, "not valid JSON"),
        ("9" * 5000, "not valid JSON"),
        ('"\xff', "not valid JSON"),
    ],
)
def test_a_damaged_row_is_named(content, says, tmp_path):
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "a.json").write_text(content, encoding="latin-1")
    with pytest.raises(RunError, match=says) as caught:
        load_rows(tmp_path)
    assert "a.json" in str(caught.value)


# ---- checkpoints from before `model_type`


@pytest.fixture(scope="module")
def old_hub(tmp_path_factory):
    "A cache with old repositories as they are."
    cache = tmp_path_factory.mktemp("hub")
    for name in ("prajjwal1/bert-small", "facebook/opt-125m"):
        cache_model(cache, name)
    return cache


@pytest.fixture
def old(old_hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(old_hub))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return local_folder("prajjwal1/bert-small")


def test_an_old_checkpoint_is_what_its_files_show(old, tmp_path):
    assert sorted(path.name for path in old.iterdir()) == ["config.json", "pytorch_model.bin", "vocab.txt"]
    assert "model_type" not in read_json(old / "config.json")
    state, task, words = torch.load(old / "pytorch_model.bin"), load_task("sentiment"), "The film is not a GOOD one."
    ids = load_model("tiny-bert").tokenizer(words)["input_ids"]
    for name in ("prajjwal1/bert-small", str(old)):
        model = load_model(name, task)
        assert type(model).__name__ == "BertForSequenceClassification" and model.config.model_type == "bert"
        norm = model.bert.encoder.layer[0].output.LayerNorm
        assert torch.equal(norm.weight, state["bert.encoder.layer.0.output.LayerNorm.gamma"])
        assert torch.equal(
            model.bert.embeddings.word_embeddings.weight, state["bert.embeddings.word_embeddings.weight"]
        )
        assert model.tokenizer(words)["input_ids"] == ids
    prune(model, task, method="wanda", sparsity=0.5, n_calibration=4)
    save_model(model, tmp_path / "new")  # as safetensors, which name the architecture
    assert read_json(tmp_path / "new" / "config.json")["model_type"] == "bert"
    assert load_model(tmp_path / "new", task).tokenizer(words)["input_ids"] == ids


def test_an_old_tokenizer_of_gpt_2s_kind(old):
    assert (
        load_model("facebook/opt-125m").tokenizer("A line\n  of text")["input_ids"]
        == load_model("tiny-llama").tokenizer("A line\n  of text")["input_ids"]
    )


@pytest.mark.parametrize("cased", [False, True])
@pytest.mark.parametrize("settings", [None, {"model_max_length": 64}, {"do_lower_case": True}])
def test_capital_letters_of_an_old_vocabulary_are_kept(cased, settings, old, tmp_path):
    folder = shutil.copytree(old, tmp_path / "copy")
    pieces = (folder / "vocab.txt").read_text().splitlines()
    (folder / "vocab.txt").write_text("\n".join([*pieces[:-2], "Film" if cased else "film", pieces[-1]]))
    if settings is not None:
        write_json(folder / "tokenizer_config.json", settings)
    said = (settings or {}).get("do_lower_case")
    film = load_model(folder).tokenizer("Film", add_special_tokens=False)["input_ids"]
    assert (film == [len(pieces) - 2]) == (not (cased and said))


@pytest.mark.parametrize(
    "kind, vocabulary",
    [("bert", "vocab.txt"), ("distilbert", "vocab.txt"), ("roberta", "merges.txt"), ("gpt2", "merges.txt")],
)
def test_architectures_are_told_apart_by_their_files(kind, vocabulary):
    entries = transformers.AutoConfig.for_model(kind).to_dict()
    for name in ("model_type", "architectures"):
        entries.pop(name, None)
    assert named_type(entries, {vocabulary}, "config.json") == kind
    assert named_type(entries | {"architectures": ["GPT2LMHeadModel"]}, {vocabulary}, "config.json") == "gpt2"


@pytest.mark.parametrize("kind", ["electra", "albert", "llama", "gpt_neo", "xlnet", "opt"])
@pytest.mark.parametrize("vocabulary", ["vocab.txt", "merges.txt"])
def test_an_architecture_is_not_guessed_from_a_likeness(kind, vocabulary):
    entries = transformers.AutoConfig.for_model(kind).to_dict()
    for name in ("model_type", "architectures"):
        entries.pop(name, None)
    with pytest.raises(RunError, match='add its "model_type"'):
        named_type(entries, {vocabulary}, "config.json")


def without_signs(folder):
    "Nothing beside the weights says what they are."
    (folder / "vocab.txt").unlink()


def another_body(folder):
    "Weights of a relative, which the guess does not fit."
    state = torch.load(folder / "pytorch_model.bin")
    renamed = {name.replace("bert.", "relative.").replace("output.dense", "out"): t for name, t in state.items()}
    torch.save(renamed, folder / "pytorch_model.bin")


def many_blocks(folder):
    entries("config.json", num_hidden_layers=10**9)(folder)


@pytest.mark.parametrize(
    "change, words",
    [
        (without_signs, 'add its "model_type", such as "bert", to that file'),
        (another_body, "are not those of its configuration"),
        (many_blocks, "more blocks"),
    ],
)
def test_an_old_checkpoint_that_cannot_be_told_is_refused(change, words, old, tmp_path, capsys):
    folder = shutil.copytree(old, tmp_path / "copy")
    change(folder)
    assert words in told(capsys, ["evaluate", "--model", str(folder), "--task", "sentiment"], 1)


def test_pickled_weights_are_converted_by_the_line_that_the_refusal_gives(old, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match='python -c "from pruneresearch import') as caught:
        prune_stream("facebook/opt-125m", tmp_path / "out", method="magnitude", sparsity=0.5)
    assert not (tmp_path / "out").exists()
    exec(str(caught.value).split('python -c "')[1].split('"')[0])
    assert prune_stream("opt-125m-safetensors", tmp_path / "out", method="magnitude", sparsity=0.5).achieved == 0.5
    stored = load_file(tmp_path / "opt-125m-safetensors" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}  # the checkpoint's own
