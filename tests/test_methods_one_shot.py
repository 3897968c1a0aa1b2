"""Wanda, its variant, SparseGPT and OWL: against oracles written from the papers' formulas, weight by weight, with
the blocks in order."""

import math

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, DECODERS, batch

from pruneresearch.basics.errors import RunError, UsageError
from pruneresearch.methods.owl import owl
from pruneresearch.methods.sparsegpt import factor_of_inverse, sweep
from pruneresearch.methods.wanda import cumulative_share
from pruneresearch.model.anatomy import anatomy
from pruneresearch.pruning.blocks import block_by_block
from pruneresearch.pruning.engine import prune
from pruneresearch.pruning.patterns import Pattern
from pruneresearch.pruning.selection import keep_highest

WALKED = DECODERS  # Llama, Mistral and Qwen2 with grouped queries, OPT and GPT-Neo without gates


# --- oracles, in numpy ---------------------------------------------------------------------------------------------


def heard_tokens(model, layer, data):
    "What one layer is given, (tokens, in), example after example, each alone and without its padding."
    heard = []
    handle = layer.register_forward_pre_hook(
        lambda module, inputs: heard.append(inputs[0].detach().double().reshape(-1, inputs[0].shape[-1]).numpy())
    )
    with torch.no_grad():
        for ids, mask in zip(data["input_ids"], data["attention_mask"], strict=True):
            model(input_ids=ids[None, mask.bool()], use_cache=False)
    handle.remove()
    return heard


def wanda_oracle(weight, heard, sparsity, n=0, m=0):
    "keep, by sorting every row, or every group of m, by |w|·‖x‖."
    norm = np.sqrt(sum((tokens**2).sum(0) for tokens in heard))
    keep = np.ones(weight.shape, bool)
    for row, scores in enumerate(np.abs(weight) * norm):
        groups = [range(a, a + m) for a in range(0, len(scores), m)] if m else [range(len(scores))]
        for group in groups:
            gone = m - n if m else math.floor(sparsity * len(scores))
            for j in sorted(group, key=lambda j: scores[j])[:gone]:
                keep[row, j] = False
    return weight * keep, keep


def sparsegpt_oracle(weight, heard, sparsity, n=0, m=0, columns=128, damping=0.01):
    "(new weights, keep): optimal brain surgery with the inverse of what is still free computed anew for every column."
    w, keep = weight.astype(np.float64).copy(), np.ones(weight.shape, bool)
    h = 2 / len(heard) * sum(tokens.T @ tokens for tokens in heard)
    dead = np.diag(h) == 0
    h[dead, dead] = 1
    w[:, dead] = 0
    h += damping * np.diag(h).mean() * np.eye(len(h))

    def inverse_at(j):
        return np.linalg.inv(h[j:, j:])  # its corner is U_jj², its first row U_jj · U_j,j:

    corner = np.array([inverse_at(j)[0, 0] for j in range(len(h))])
    for j in range(w.shape[1]):
        if m and j % m == 0:
            for row in range(len(w)):
                for k in sorted(range(j, j + m), key=lambda k: w[row, k] ** 2 / corner[k])[: m - n]:
                    keep[row, k] = False
        if not m and j % columns == 0:
            price = w[:, j : j + columns] ** 2 / corner[j : j + columns]
            flat = sorted(range(price.size), key=lambda i: price.flat[i])[: math.floor(sparsity * price.size)]
            for i in flat:
                keep[i // price.shape[1], j + i % price.shape[1]] = False
        inverse = inverse_at(j)
        error = np.where(keep[:, j], 0, w[:, j])
        w[:, j:] -= np.outer(error / inverse[0, 0], inverse[0])
        w[~keep[:, j], j] = 0
    return w, keep


def prune_by_hand(model, data, oracle, **how):
    "The whole model, block after block; name → keep."
    masks = {}
    for block in anatomy(model).blocks:
        heard = {role: heard_tokens(model, linear, data) for role, linear in block.linears.items()}
        for role, linear in block.linears.items():
            weight, keep = oracle(linear.weight.detach().double().numpy(), heard[role], **how)
            with torch.no_grad():
                linear.weight.copy_(torch.from_numpy(weight))
            masks[f"{block.names[role]}.weight"] = torch.from_numpy(keep)
    return masks


ORACLES = {"wanda": wanda_oracle, "sparsegpt": sparsegpt_oracle}


def split(data, size):
    return [{key: value[i : i + size] for key, value in data.items()} for i in range(0, len(data["input_ids"]), size)]


# --- the library against them --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 8], ids=["one at a time", "eight at once"])
@pytest.mark.parametrize(
    "ask",
    [dict(sparsity=0.5), dict(sparsity=0.7), dict(pattern="2:4"), dict(pattern="4:8")],
    ids=["50", "70", "2:4", "4:8"],
)
@pytest.mark.parametrize("method", list(ORACLES))
@pytest.mark.parametrize("name", WALKED)
def test_masks_and_weights_are_the_oracles(name, method, ask, size):
    data = batch(name, n=8, length=24, padded=True)
    mine, theirs = ARCHITECTURES[name](), ARCHITECTURES[name]()
    n, m = map(int, ask["pattern"].split(":")) if "pattern" in ask else (0, 0)
    result = prune(mine, calibration=split(data, size), method=method, **ask)
    masks = prune_by_hand(theirs, data, ORACLES[method], sparsity=ask.get("sparsity"), n=n, m=m)
    assert result.sequential and result.masks.keep.keys() == masks.keys()
    for key, keep in masks.items():
        assert torch.equal(result.masks.keep[key], keep), (
            f"{key}: {(result.masks.keep[key] != keep).sum()} entries differ"
        )
    for (key, a), (_, b) in zip(mine.named_parameters(), theirs.named_parameters(), strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm(), key


def test_one_pass_is_another_thing_and_can_be_had():
    data = batch("llama", n=8, length=24)
    walk, once = (
        prune(ARCHITECTURES["llama"](), calibration=[data], method="wanda", sparsity=0.7, sequential=way)
        for way in (None, False)
    )
    first, last = anatomy(ARCHITECTURES["llama"]()).blocks[0], anatomy(ARCHITECTURES["llama"]()).blocks[-1]

    def same(block):
        return all(
            torch.equal(walk.masks.keep[f"{name}.weight"], once.masks.keep[f"{name}.weight"])
            for name in block.names.values()
        )

    assert same(first) and not same(last) and walk.sequential and not once.sequential


@pytest.mark.parametrize("method", list(ORACLES))
def test_bfloat16_weights_are_pruned_by_float32_statistics(method):
    data = batch("llama", n=8, length=24)
    model, wide = ARCHITECTURES["llama"]().to(torch.bfloat16), ARCHITECTURES["llama"]().to(torch.bfloat16)
    result = prune(model, calibration=[data], method=method, sparsity=0.5)
    assert result.achieved == 0.5 and {p.dtype for p in model.parameters()} == {torch.bfloat16}
    block, seen = next(block_by_block(wide, [data], {"norm", "gram"}))  # the first block has heard the same
    name, linear = block.names["down"], block.linears["down"]
    weight = linear.weight.detach().double().numpy()
    if method == "wanda":
        expected = torch.from_numpy(wanda_oracle(weight, [np.diag(seen[name].norm.double().numpy())], 0.5)[1])
    else:
        u, _ = factor_of_inverse(seen[name].gram)
        expected = sweep(
            linear.weight.detach().float().T.contiguous(),
            u,
            [len(weight)],
            0.5,
            torch.zeros(weight.shape[::-1], dtype=torch.bool),
        ).T
    assert torch.equal(result.masks.keep[f"{name}.weight"], expected)


# --- SparseGPT on tiny tensors -------------------------------------------------------------------------------------


def swept(weight, tokens, share, earlier=None):
    "(new weights, keep) of one layer, by the library."
    u, dead = factor_of_inverse(tokens.T @ tokens / 2)
    w = weight.T.clone().contiguous()
    w[dead] = 0
    gone = torch.zeros_like(w, dtype=torch.bool) if earlier is None else ~earlier.T
    keep = sweep(w, u, [len(weight)], share, gone)
    return w.T, keep.T


@pytest.mark.parametrize("inputs", [40, 128, 300])
@pytest.mark.parametrize(
    "share, n, m",
    [(0.5, 0, 0), (0.9, 0, 0), (0.0, 0, 0), (Pattern("n:m", 2, 4), 2, 4), (Pattern("n:m", 1, 4), 1, 4)],
    ids=str,
)
def test_sweep_is_optimal_brain_surgery(inputs, share, n, m):
    random = torch.Generator().manual_seed(inputs)
    tokens = (
        torch.randn(3 * inputs, inputs, generator=random) @ torch.randn(inputs, inputs, generator=random) / inputs**0.5
    )
    tokens[:, 5] = 0  # a dead input
    weight = torch.randn(6, inputs, generator=random)
    w, keep = swept(weight, tokens, share)
    halves = [part.double().numpy() for part in tokens.split(len(tokens) // 2)][:2]
    expected, mask = sparsegpt_oracle(weight.double().numpy(), halves, share if not m else None, n, m)
    assert torch.equal(keep, torch.from_numpy(mask))
    assert torch.linalg.norm(w.double() - torch.from_numpy(expected)) <= 1e-4 * np.linalg.norm(expected)
    assert not w[:, 5].any() and torch.equal(w != 0, keep & (torch.arange(inputs) != 5))


def test_layers_with_one_input_are_swept_together_as_if_alone():
    random = torch.Generator().manual_seed(0)
    tokens, a, b = (
        torch.randn(500, 200, generator=random),
        torch.randn(7, 200, generator=random),
        torch.randn(12, 200, generator=random),
    )
    u, _ = factor_of_inverse(tokens.T @ tokens / 2)
    together = torch.cat([a, b]).T.contiguous()
    keep = sweep(together, u, [7, 12], 0.6, torch.zeros(200, 19, dtype=torch.bool)).T
    for weight, rows in ((a, slice(0, 7)), (b, slice(7, 19))):
        alone, mask = swept(weight, tokens, 0.6)
        assert torch.equal(keep[rows], mask)
        torch.testing.assert_close(together.T[rows], alone, rtol=1e-4, atol=1e-5)


def test_what_is_gone_stays_gone():
    random = torch.Generator().manual_seed(0)
    tokens, weight = torch.randn(500, 128, generator=random), torch.randn(9, 128, generator=random)
    w, first = swept(weight, tokens, 0.25)
    again, second = swept(w, tokens, 0.5, first)
    assert not (second & ~first).any() and int((~second).sum()) == 9 * 64 and torch.equal(again != 0, second)


def test_the_update_brings_every_layer_nearer_to_its_dense_output():
    data, model, dense = batch("llama", n=16, length=24), ARCHITECTURES["llama"](), ARCHITECTURES["llama"]()
    masks = prune(model, calibration=[data], method="sparsegpt", sparsity=0.6).masks
    for role, layer in anatomy(dense).blocks[0].linears.items():
        x = np.concatenate(heard_tokens(dense, layer, data))
        weight, name = layer.weight.detach().double().numpy(), f"{anatomy(dense).blocks[0].names[role]}.weight"

        def error(w, x=x, weight=weight):
            return np.linalg.norm(x @ (w - weight).T)

        assert error(dict(model.named_parameters())[name].detach().double().numpy()) < 0.99 * error(
            weight * masks.keep[name].numpy()
        ), role


def test_inputs_without_variety_are_refused():
    with pytest.raises(RunError, match="not positive definite"):
        factor_of_inverse(-torch.eye(3))


# --- Wanda's variant -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7])
def test_alpha_is_what_bisection_finds(sparsity):
    score = torch.rand(20, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 3
    ordered = score.sort(1).values

    def gone(alpha):  # as described: in each row, everything whose running sum stays within alpha of the row's sum
        within = ordered.cumsum(1) <= alpha * score.sum(1, keepdim=True)
        return score <= torch.where(within.any(1, keepdim=True), (ordered * within).amax(1, keepdim=True), -1)

    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if gone(middle).double().mean() < sparsity:
            low = middle
        else:
            high = middle
    wanted = math.floor(sparsity * score.numel())
    exact = cumulative_share(score).flatten().argsort()[:wanted]
    assert (
        set(exact.tolist()) <= set(gone(high).flatten().nonzero().flatten().tolist())
        and int(gone(high).sum()) == wanted
    )


def test_alpha_variant_has_rows_of_different_length_and_the_exact_total():
    result = prune(
        ARCHITECTURES["llama"](), calibration=[batch("llama", n=8, length=24)], method="wanda-alpha", sparsity=0.5
    )
    keep = result.masks.keep["model.layers.1.mlp.down_proj.weight"]
    assert result.achieved == 0.5 and int(keep.sum()) * 2 == keep.numel() and len(set(keep.sum(1).tolist())) > 1


# --- OWL -----------------------------------------------------------------------------------------------------------


def owl_oracle(model, data, sparsity, multiple=5, span=0.08):
    "The blocks' sparsities, entry by entry."
    outliers = []
    for block in anatomy(model).blocks:
        scores = []
        for linear in block.linears.values():
            norm = np.sqrt(sum((tokens**2).sum(0) for tokens in heard_tokens(model, linear, data)))
            scores += (np.abs(linear.weight.detach().double().numpy()) * norm).flatten().tolist()
        outliers.append(sum(s > multiple * sum(scores) / len(scores) for s in scores) / len(scores))
    density = [(d - min(outliers)) / (max(outliers) - min(outliers)) * span * 2 for d in outliers]
    density = [d - sum(density) / len(density) + 1 - sparsity for d in density]
    return [1 - d for d in density]


@pytest.mark.parametrize("method, per", [("wanda", 1), ("magnitude", None), ("sparsegpt", None)])
def test_owl(method, per):
    data, model = batch("llama", n=8, length=24), ARCHITECTURES["llama"]()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.view(-1)[::40] *= 12  # outliers in one block
    expected = owl_oracle(model, data, 0.7)
    result = prune(model, calibration=[data], method=method, sparsity=0.7, allocation="owl")
    assert result.sparsity == pytest.approx(expected) and max(expected) - min(expected) == pytest.approx(0.16)
    assert sum(expected) / 3 == pytest.approx(0.7) and abs(result.achieved - 0.7) < 1e-3 and result.allocation == "owl"
    for block, share in zip(anatomy(model).blocks, result.sparsity, strict=True):
        keep = result.masks.keep[f"{block.names['gate']}.weight"]
        assert int((~keep).sum()) == math.floor(share * keep.numel())
        if per:
            assert set((~keep).sum(1).tolist()) <= {
                math.floor(share * keep.shape[1]),
                math.floor(share * keep.shape[1]) + 1,
            }


def test_owl_with_equal_blocks_and_out_of_range():
    class Same:
        blocks = []

    model = ARCHITECTURES["llama"]()
    structure = anatomy(model)
    norm = {name: torch.ones(linear.in_features) for name, linear in structure.linears.items()}
    with torch.no_grad():
        for linear in structure.linears.values():
            linear.weight.fill_(1)
    assert owl(structure, 0.5, norm) == [0.5] * 3
    with torch.no_grad():
        structure.blocks[0].linears["q"].weight[0] = 100
    with pytest.raises(UsageError, match="further from 0 and 1"):
        owl(structure, 0.97, norm)


# --- settings of a method and of an allocation ---------------------------------------------------------------------


def test_damping_is_the_oracles():
    data, mine, theirs = batch("llama", n=8, length=24), ARCHITECTURES["llama"](), ARCHITECTURES["llama"]()
    result = prune(mine, calibration=[data], method="sparsegpt", sparsity=0.6, options={"damping": 0.5})
    for key, keep in prune_by_hand(theirs, data, sparsegpt_oracle, sparsity=0.6, damping=0.5).items():
        assert torch.equal(result.masks.keep[key], keep), key
    assert all((a - b).norm() <= 1e-4 * b.norm() for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))
    usual = prune(ARCHITECTURES["llama"](), calibration=[data], method="sparsegpt", sparsity=0.6)
    assert any(not torch.equal(keep, result.masks.keep[key]) for key, keep in usual.masks.keep.items())


def test_finished_blocks_of_other_settings_are_refused(tmp_path):
    ask = dict(calibration=[batch("llama")], method="sparsegpt", sparsity=0.6, resume=tmp_path)
    prune(ARCHITECTURES["llama"](), **ask, options={"damping": 0.1})
    with pytest.raises(UsageError, match="belongs to another request"):
        prune(ARCHITECTURES["llama"](), **ask)
    prune(ARCHITECTURES["llama"](), **ask, options={"damping": 0.1})


@pytest.mark.parametrize(
    "method, options",
    [("wanda", {"multiple": 3, "span": 0.2}), ("sparsegpt", {"multiple": 3, "span": 0.2, "damping": 0.1})],
)
def test_owl_takes_its_settings_beside_the_methods(method, options):
    data, model = batch("llama", n=8, length=24), ARCHITECTURES["llama"]()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.view(-1)[::40] *= 12
    expected = owl_oracle(model, data, 0.6, 3, 0.2)
    assert prune(
        model, calibration=[data], method=method, sparsity=0.6, allocation="owl", options=options
    ).sparsity == pytest.approx(expected) and max(expected) - min(expected) == pytest.approx(0.4)


@pytest.mark.parametrize(
    "ask, message",
    [
        (
            dict(method="sparsegpt", options={"dampening": 1}),
            "'dampening' is no option of method 'sparsegpt' with allocation 'layer'. Its options are damping",
        ),
        (dict(method="wanda", options={"damping": 1}), "takes no options"),
        (dict(method="wanda", allocation="owl", options={"damping": 1}), "Its options are multiple, span"),
        (dict(method="sparsegpt", options={"damping": "much"}), "damping must be a share"),
        (dict(method="sparsegpt", options={"damping": -1}), "damping must be a share"),
        (dict(method="wanda", allocation="owl", options={"multiple": 0}), "a multiple above 0"),
    ],
)
def test_settings_that_make_no_sense(ask, message):
    model = ARCHITECTURES["llama"]()
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(UsageError, match=message):
        prune(model, calibration=[batch("llama")], sparsity=0.5, **ask)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


# --- a run that is killed ------------------------------------------------------------------------------------------


class Killed(BaseException):
    "As a signal would be."


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_a_killed_run_goes_on_to_the_same_weights(method, tmp_path, monkeypatch):
    from pruneresearch.pruning import walk as room

    data = [batch("llama", n=4, length=24, seed=s) for s in (0, 1)]
    ask = dict(calibration=data, method=method, sparsity=0.6, seed=0)
    whole = ARCHITECTURES["llama"]()
    expected = prune(whole, **ask)
    real = room.store_block

    def dies(folder, request, model, index, part, generator):
        if index == 2:
            raise Killed
        real(folder, request, model, index, part, generator)

    monkeypatch.setattr(room, "store_block", dies)
    with pytest.raises(Killed):
        prune(ARCHITECTURES["llama"](), **ask, resume=tmp_path)
    monkeypatch.setattr(room, "store_block", real)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["block-0000.safetensors", "block-0001.safetensors"]

    calibrated = []
    walk = room.block_by_block

    def counting(*args, **how):
        for block, statistics in walk(*args, **how):
            calibrated.append(block.index)
            yield block, statistics

    monkeypatch.setattr(room, "block_by_block", counting)
    model = ARCHITECTURES["llama"]()
    result = prune(model, **ask, resume=tmp_path)
    assert calibrated == [2]
    assert all(torch.equal(keep, result.masks.keep[key]) for key, keep in expected.masks.keep.items())
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), model.parameters(), strict=True))


def test_random_scores_go_on_where_the_killed_run_was(tmp_path):
    ask, whole, model = (
        dict(calibration=[batch("llama")], method="random", pattern="neurons", sparsity=0.5, repair=True),
        ARCHITECTURES["llama"](),
        ARCHITECTURES["llama"](),
    )
    expected = prune(whole, **ask)
    prune(ARCHITECTURES["llama"](), **ask, resume=tmp_path)
    for late in (1, 2):
        (tmp_path / f"block-000{late}.safetensors").unlink()
    result = prune(model, **ask, resume=tmp_path)
    assert all(torch.equal(keep, result.masks.keep[key]) for key, keep in expected.masks.keep.items()) and all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), model.parameters(), strict=True)
    )


def test_finished_blocks_of_something_else_are_refused(tmp_path):
    ask = dict(calibration=[batch("llama")], method="wanda")
    prune(ARCHITECTURES["llama"](), sparsity=0.6, **ask, resume=tmp_path)
    for model, sparsity in ((ARCHITECTURES["llama"](), 0.5), (ARCHITECTURES["llama"](seed=1), 0.6)):
        before = [p.clone() for p in model.parameters()]
        with pytest.raises(UsageError, match="belongs to another request"):
            prune(model, sparsity=sparsity, **ask, resume=tmp_path)
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    path = tmp_path / "block-0001.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RunError, match="Delete it to prune its block again"):
        prune(ARCHITECTURES["llama"](), sparsity=0.6, **ask, resume=tmp_path)


def test_a_folder_that_cannot_be_written_is_noticed_before_any_work(tmp_path):
    model = ARCHITECTURES["llama"]()
    before = [p.clone() for p in model.parameters()]
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="Name another folder for resume"):
        prune(
            model,
            calibration=[batch("llama")],
            method="wanda",
            sparsity=0.5,
            resume=tmp_path / "file" / "below",
        )
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_disk_that_fills_up_says_how_to_go_on(tmp_path, monkeypatch):
    import safetensors.torch as files

    save, ask = files.save_file, dict(calibration=[batch("llama")], method="wanda", sparsity=0.5)

    def full(tensors, path, metadata=None):
        if len(list(tmp_path.glob("block-*"))) == 1:
            raise OSError(28, "No space left on device")
        save(tensors, path, metadata=metadata)

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(RunError, match="block 1 could not be kept.*No space left.*[Ll]oad the model afresh"):
        prune(ARCHITECTURES["llama"](), **ask, resume=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["block-0000.safetensors"]
    monkeypatch.setattr(files, "save_file", save)
    whole, model = ARCHITECTURES["llama"](), ARCHITECTURES["llama"]()
    prune(whole, **ask)
    prune(model, **ask, resume=tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), model.parameters(), strict=True))


def test_inputs_that_are_not_finite_name_their_block():
    model = ARCHITECTURES["llama"]()
    with torch.no_grad():
        anatomy(model).blocks[1].module.input_layernorm.weight[3] = float("inf")
    with pytest.raises(RunError, match=r"block 1 \(block 0 is pruned already\): .*NaN or infinite"):
        prune(model, calibration=[batch("llama")], method="sparsegpt", sparsity=0.5)


# --- what does not go together -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ask, message",
    [
        (dict(method="taylor", sequential=True), "needs gradients or outputs of the whole model"),
        (dict(method="magnitude", sequential=True), "needs no data"),
        (dict(method="wanda", allocation="global", sequential=True), "compares all blocks with each other"),
        (dict(method="sparsegpt", allocation="row"), "by itself. Leave allocation out"),
        (dict(method="sparsegpt", pattern="heads"), "Choose pattern unstructured or N:M"),
        (dict(method="wanda", device="gpu"), "is no device"),
        (dict(method="wanda", offload="cuda"), "activations cannot be offloaded"),
        (dict(method="wanda", resume=__file__), "is a file"),
        (dict(method="taylor", device="cpu"), "are for methods that go block by block"),
        (dict(method="wanda", resume="x", schedule="linear", rounds=2), "resume works with one round"),
        (dict(method="wanda", pattern="2:4", sparsity=None, allocation="owl"), "does not go with pattern"),
    ],
)
def test_refused(ask, message):
    with pytest.raises(UsageError, match=message):
        prune(ARCHITECTURES["llama"](), calibration=[batch("llama")], **({"sparsity": 0.5} | ask))


def test_owl_needs_data_whatever_the_method():
    with pytest.raises(UsageError, match="needs data for this request"):
        prune(ARCHITECTURES["llama"](), method="magnitude", sparsity=0.5, allocation="owl")


# --- the command line ----------------------------------------------------------------------------------------------


def run(*words):
    from pruneresearch.cli.main import main

    return main([str(word) for word in words])


def told(capsys):
    captured = capsys.readouterr()
    return captured.out, captured.err


@pytest.mark.parametrize("name", DECODERS)
def test_any_local_decoder_folder_is_pruned_and_reloads(name, tmp_path, capsys):
    from pruneresearch.model.loading import load_model, save_model

    model = ARCHITECTURES[name](vocab_size=2048)
    model.tokenizer = load_model("tiny-llama").tokenizer
    save_model(model, tmp_path / "dense")
    (tmp_path / "some.txt").write_text(
        "\n\n".join(f"Document {i}. " + "Return the number of items in the list. " * 20 for i in range(60))
    )
    asked = [
        "prune",
        "--model",
        tmp_path / "dense",
        "--task",
        tmp_path / "some.txt",
        "--method",
        "sparsegpt",
        "--sparsity",
        0.5,
        "--n-calibration",
        8,
        "--length",
        32,
        "--set",
        "damping=0.02",
    ]
    assert run(*asked, "--output", tmp_path / "out", "--resume", tmp_path / "kept") == 0, told(capsys)[1]
    assert "sparsity         50.0000%" in told(capsys)[0] and list((tmp_path / "kept").glob("block-*.safetensors"))
    again = type(model).from_pretrained(tmp_path / "out")
    for key, weight in again.named_parameters():
        if key.endswith(("q_proj.weight", "out_proj.weight", "down_proj.weight")):
            assert int((weight == 0).sum()) * 2 == weight.numel(), key
    assert run(*asked, "--output", tmp_path / "again", "--resume", tmp_path / "kept") == 0  # everything is found there
    twin = type(model).from_pretrained(tmp_path / "again")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), twin.parameters(), strict=True))


def test_whole_blocks_and_rounded_repaired_neurons_from_the_shell(tmp_path, capsys):
    from transformers import AutoModelForCausalLM

    common = ["prune", "--model", "tiny-llama", "--task", "pydocs", "--n-calibration", 8, "--length", 64, "--remove"]
    assert (
        run(
            *common,
            "--method",
            "block-influence",
            "--pattern",
            "blocks",
            "--sparsity",
            0.25,
            "--output",
            tmp_path / "blocks",
        )
        == 0
    )
    assert (
        "how many blocks there are" in told(capsys)[1]
        and AutoModelForCausalLM.from_pretrained(tmp_path / "blocks").config.num_hidden_layers == 3
    )
    assert (
        run(
            *common,
            "--method",
            "activation-norm",
            "--pattern",
            "neurons",
            "--sparsity",
            0.3,
            "--multiple-of",
            64,
            "--repair",
            "--output",
            tmp_path / "neurons",
        )
        == 0
    )
    assert (
        "reloads with from_pretrained" in told(capsys)[1]
        and AutoModelForCausalLM.from_pretrained(tmp_path / "neurons").config.intermediate_size == 320
    )


@pytest.mark.parametrize(
    "words, message",
    [
        (["--method", "sparsegpt", "--sparsity", 0.5, "--allocation", "global"], "by itself. Leave allocation out"),
        (["--method", "taylor", "--sparsity", 0.5, "--sequential"], "Leave sequential out"),
        (["--sparsity", 0.5, "--pattern", "blocks", "--method", "weight-range"], "whole heads and neurons"),
        (["--sparsity", 0.5, "--multiple-of", 8], "for the number of neurons"),
        (["--sparsity", 0.5, "--repair"], "Choose pattern"),
        (["--method", "sparsegpt", "--sparsity", 0.5, "--set", "damp=1"], "options are damping"),
        (["--sparsity", 0.5, "--set", "damping"], "NAME=VALUE"),
        (["--method", "magnitude", "--sparsity", 0.5, "--resume", "x"], "block by block"),
        (["--pattern", "2:4", "--remove"], "or blocks"),
    ],
)
def test_bad_calls_are_one_sentence(words, message, capsys):
    assert run("prune", "--model", "tiny-llama", "--task", "pydocs", *words) == 2
    out, err = told(capsys)
    assert message in err and err.count("\n") == 1 and not out


def test_even_rows_take_the_cheapest_next_weights():
    score = torch.tensor([[1.0, 2.0, 9.0, 8.0], [1.0, 7.0, 3.0, 9.0], [5.0, 6.0, 7.0, 8.0]])
    keep = keep_highest(
        score, 0.42, per="even rows"
    )  # one of each row, and two more: the 2 of the first row, the 3 of the second
    assert (~keep).tolist() == [[True, True, False, False], [True, False, True, False], [True, False, False, False]]
    assert torch.equal(keep_highest(score, 0.5, per="even rows"), keep_highest(score, 0.5, per="row"))


@pytest.mark.parametrize("method", list(ORACLES))
def test_layers_outside_the_blocks_lose_exactly_what_was_asked_for(method):
    model = ARCHITECTURES["llama"]()
    result = prune(model, calibration=[batch("llama", n=8, length=24)], method=method, sparsity=0.5, scope="all-linear")
    assert "lm_head.weight" in result.masks.keep and all(
        int(keep.sum()) * 2 == keep.numel() for keep in result.masks.keep.values()
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", list(ORACLES))
def test_blocks_that_visit_the_gpu_end_with_the_same_masks(method):
    data, here, there = batch("llama", n=8, length=24, padded=True), ARCHITECTURES["llama"](), ARCHITECTURES["llama"]()
    one, other = (
        prune(model, calibration=[data], method=method, sparsity=0.5, device=device)
        for model, device in ((here, None), (there, "cuda"))
    )
    assert all((one.masks.keep[key] == other.masks.keep[key]).float().mean() > 0.999 for key in one.masks.keep) and {
        p.device.type for p in there.parameters()
    } == {"cpu"}


def test_a_rule_of_ones_own():
    from pruneresearch.pruning.registry import ALLOCATION_RULES, allocation_rule

    try:

        @allocation_rule()
        def last_half(anatomy, sparsity, norm):
            assert norm.keys() == anatomy.linears.keys()
            return [0.0] * (len(anatomy.blocks) - 1) + [sparsity]

        result = prune(
            ARCHITECTURES["llama"](),
            calibration=[batch("llama")],
            method="magnitude",
            sparsity=0.5,
            allocation="last-half",
        )
        assert result.sparsity == [0, 0, 0.5] and result.allocation == "last-half"
        with pytest.raises(UsageError, match="built in"):
            allocation_rule(name="row")(lambda anatomy, sparsity: [])
        with pytest.raises(UsageError, match="asks for gradient"):
            allocation_rule(name="other")(lambda anatomy, sparsity, gradient: [])
    finally:
        ALLOCATION_RULES.pop("last-half", None)
