"Export: ONNX Runtime agrees for every architecture, cut and uncut; the command line; 2:4 where there is no GPU."

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, DECODERS, batch
from test_shipping_surgery import NAMES, cuts, logits

from pruneresearch.basics.errors import RunError, UsageError
from pruneresearch.basics.files import read_json
from pruneresearch.cli.main import main
from pruneresearch.model.loading import load_model
from pruneresearch.pruning.engine import prune
from pruneresearch.pruning.masks import Masks
from pruneresearch.shipping import exports as export
from pruneresearch.shipping.exports import export_onnx, is_2_4, semi_structured
from pruneresearch.shipping.surgery import remove


class Tokenizer:
    "Says which inputs there are, and has nothing to save."

    model_input_names = ["input_ids", "attention_mask"]

    def save_pretrained(self, folder):
        pass


@pytest.mark.parametrize("name", NAMES)
def test_onnx_runtime_agrees(name, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model = ARCHITECTURES[name]()
    model.tokenizer = Tokenizer()
    smaller = remove(model, Masks.from_units(model, cuts(model, "uneven")))
    found = export_onnx(smaller, tmp_path / "out")
    assert found["outputs"] == ["logits"] and found == read_json(tmp_path / "out" / "onnx.json")
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    for n, length in ((1, 7), (5, 20)):
        data = batch(name, n=n, length=length, padded=True)
        answer = session.run(["logits"], {k: v.numpy() for k, v in data.items() if k != "labels"})[0]
        expected = logits(smaller, data).numpy()
        real = data["attention_mask"].bool().numpy() if name in DECODERS else slice(None)
        assert np.abs(answer[real] - expected[real]).max() < 1e-4 * max(1, np.abs(expected).max())


def test_a_graph_that_differs_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "runtime_difference", lambda *a: (0.1, 5.0))
    model = ARCHITECTURES["bert"]()
    model.tokenizer = Tokenizer()
    with pytest.raises(RunError, match="nothing was written"):
        export_onnx(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(RunError, match=r"onnxscript: install .*pruneresearch\[onnx\]"):
        export_onnx(load_model("tiny-bert"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_2_4_needs_the_hardware():
    model = load_model("tiny-llama", device="cpu")
    prune(model, method="magnitude", pattern="2:4")
    assert all(is_2_4(p) for n, p in model.named_parameters() if n.endswith("_proj.weight"))
    with pytest.raises(RunError, match="compute capability 8.0"):
        semi_structured(model)


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0), reason="needs a GPU with 2:4 kernels"
)
def test_2_4_computes_the_same_on_a_gpu():
    model = load_model("tiny-llama", device="cuda", dtype="float16")
    with pytest.raises(UsageError, match="no layer"):
        semi_structured(model)
    prune(model, method="magnitude", pattern="2:4")
    data = {"input_ids": torch.randint(5, 1000, (8, 64), device="cuda")}
    expected = logits(model, data)
    assert semi_structured(model)
    assert torch.allclose(logits(model, data), expected, atol=0.02 * expected.abs().max().item())


@pytest.mark.slow
def test_command_line(tmp_path, capsys):
    out, text = tmp_path / "cut", str(tmp_path / "text.txt")
    (tmp_path / "text.txt").write_text(
        "\n\n".join(
            f"Return the {word} of the list, or None where there is no {word}. {word.title()} must be a string. " * 3
            for word in "first last next only name size type value item line".split()
        )
    )
    assert (
        main(
            [
                "prune",
                "--model",
                "tiny-llama",
                "--task",
                text,
                "--pattern",
                "heads",
                "--sparsity",
                "0.5",
                "--remove",
                "--length",
                "64",
                "--output",
                str(out),
            ]
        )
        == 0
    )
    printed = capsys.readouterr()
    assert (
        printed.err
        == "pruneresearch: the smaller model reloads with from_pretrained: the configuration states these sizes.\n"
    )
    assert "checkpoint reloads with from_pretrained" in " ".join(printed.out.split()) and "1,049,728 → " in printed.out
    assert main(["evaluate", "--model", str(out), "--task", text, "--length", "64"]) == 0
    assert "certificate         reloaded with from_pretrained in a fresh process" in capsys.readouterr().out
    assert main(["export", "--model", str(out), "--format", "sparse", "--output", str(tmp_path / "sparse")]) == 0
    assert (
        "reloaded with load_pruned" in capsys.readouterr().out
        and (tmp_path / "sparse" / "model.sparse.safetensors").is_file()
    )
    for words, message in (
        (["prune", "--model", "tiny-llama", "--task", text, "--sparsity", "0.5", "--remove"], "--pattern heads"),
        (["export", "--model", str(out), "--format", "gguf", "--output", str(tmp_path / "x")], "gguf"),
        (["export", "--model", str(out), "--format", "onnx", "--output", str(out)], "not empty"),
    ):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert message in said and len(said.splitlines()) == 1
    assert not (tmp_path / "x").exists()
