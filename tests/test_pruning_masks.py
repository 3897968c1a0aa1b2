"Masks: exact counts against plain sorting, and zeros that stay zero through everything that moves a weight."

import copy
from dataclasses import replace
from decimal import Decimal
from itertools import product

import pytest
import torch
from architectures import ARCHITECTURES, batch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import prune as torch_prune

from pruneresearch.basics.errors import RunError, UsageError
from pruneresearch.model.anatomy import anatomy
from pruneresearch.pruning.allocations import ALLOCATIONS, check_allocation
from pruneresearch.pruning.engine import prune
from pruneresearch.pruning.masks import Masks
from pruneresearch.pruning.patterns import check_sparsity, count_pruned, parse_pattern
from pruneresearch.pruning.selection import (
    keep_highest,
    keep_highest_global,
    keep_highest_n_m,
    require_units_left,
    select,
    select_units,
    selection_network,
)

SPARSITIES = (0, 0.1, 0.29, 0.3, 0.5, 0.57, 0.7, 0.99)


# Selection. The oracle is Python's own sort: by score, then by position; as many as the decimal number says.


def floor_of(sparsity, n):
    return int(Decimal(str(sparsity)) * n)


def kept(values, k):
    gone = set(sorted(range(len(values)), key=lambda i: (values[i], i))[:k])
    return [i not in gone for i in range(len(values))]


def score_tables():
    "Seeded tables: distinct values, many ties, all equal, zeros of both signs, pruned before, half precision."
    random = torch.Generator().manual_seed(0)
    for shape in ((1, 1), (1, 7), (5, 1), (6, 10), (13, 29), (3, 100)):
        yield torch.randn(shape, generator=random)
        yield torch.randint(0, 3, shape, generator=random).float()
        yield torch.ones(shape)
        yield torch.randint(0, 2, shape, generator=random).float() * torch.tensor(
            [-0.0] * (shape[1] // 2) + [1.0] * (shape[1] - shape[1] // 2)
        )
        yield torch.randn(shape, generator=random).masked_fill(torch.rand(shape, generator=random) < 0.3, -torch.inf)
        yield torch.randn(shape, generator=random).bfloat16()


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_keep_highest_is_a_plain_sort(sparsity):
    for score in score_tables():
        out, width = score.shape
        row = keep_highest(score, sparsity, per="row")
        assert row.dtype == torch.bool and row.shape == score.shape
        assert row.tolist() == [kept(values, floor_of(sparsity, width)) for values in score.tolist()]
        assert keep_highest(score, sparsity, per="layer").flatten().tolist() == kept(
            score.flatten().tolist(), floor_of(sparsity, out * width)
        )
        assert torch.equal(keep_highest(score, sparsity), keep_highest(score, sparsity, per="layer"))


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_one_ranking_over_all_tensors_is_a_plain_sort(sparsity):
    for equal in (False, True):
        random = torch.Generator().manual_seed(1)
        scores = {
            name: torch.ones(shape) if equal else torch.randint(0, 9, shape, generator=random).float()
            for name, shape in (("b", (3, 5)), ("a", (7, 2)), ("c", (4, 4)))
        }
        flat = [value for score in scores.values() for value in score.flatten().tolist()]
        found = keep_highest_global(scores, sparsity)
        assert list(found) == list(scores) and all(found[name].shape == score.shape for name, score in scores.items())
        assert [keep for mask in found.values() for keep in mask.flatten().tolist()] == kept(
            flat, floor_of(sparsity, 45)
        )


@pytest.mark.parametrize("n, m", [(1, 4), (2, 4), (4, 8), (3, 4)])
def test_n_m_is_a_plain_sort_of_each_group(n, m):
    for score in (
        torch.randn(5, 24, generator=torch.Generator().manual_seed(0)),
        torch.ones(5, 24),
        torch.randint(0, 2, (5, 24), generator=torch.Generator().manual_seed(1)).float(),
    ):
        found = keep_highest_n_m(score, n, m)
        assert found.tolist() == [
            [keep for start in range(0, 24, m) for keep in kept(row[start : start + m], m - n)]
            for row in score.tolist()
        ]
    with pytest.raises(UsageError, match=f"{n}:{m}|multiple|divi"):
        keep_highest_n_m(torch.ones(24, m + 1), n, m)  # groups lie along the inputs


@pytest.mark.parametrize("m", range(2, 11))
def test_selection_network_sorts_what_it_must(m):
    "Zeros and ones are enough (Knuth, section 5.3.4); a NaN reaches the answer from every place."
    rows = torch.tensor(list(product((0.0, 1.0), repeat=m)))
    for rank in range(m):
        wires = list(rows.unbind(1))
        for i, j, low, high in selection_network(m, rank):
            assert 0 <= i < j < m and (low or high)
            wires[i], wires[j] = (
                torch.minimum(wires[i], wires[j]) if low else None,
                torch.maximum(wires[i], wires[j]) if high else None,
            )
        assert torch.equal(wires[rank], rows.sort(1).values[:, rank])
        for i in range(m):
            score = torch.rand(2, 2 * m)
            score[1, m + i] = float("nan")
            with pytest.raises(RunError, match="NaN"):
                keep_highest_n_m(score, m - rank, m)


def test_counting():
    for n in (1, 3, 10, 100, 1000, 4096, 10**6 + 3):
        for hundredth in range(100):
            assert count_pruned(hundredth / 100, n) == hundredth * n // 100, (hundredth, n)
    for sparsity in (0, 0.0, 0.5, 0.999):
        assert check_sparsity(sparsity) == sparsity
    for wrong in (1, 1.0, 50, -0.1, float("nan"), float("inf"), "half", None):
        with pytest.raises(UsageError):
            check_sparsity(wrong)


def test_patterns_and_allocations():
    for text, kind, n, m, structured in (
        ("unstructured", "unstructured", 0, 0, False),
        ("heads", "heads", 0, 0, True),
        ("neurons", "neurons", 0, 0, True),
        ("1:4", "n:m", 1, 4, False),
        ("4:8", "n:m", 4, 8, False),
    ):
        pattern = parse_pattern(text)
        assert (pattern.kind, pattern.n, pattern.m, bool(pattern.structured)) == (kind, n, m, structured)
    for wrong in ("4:2", "4:4", "0:4", "-1:4", "2:", ":", "a:b", "rows", "", None, 4):
        with pytest.raises(UsageError):
            parse_pattern(wrong)
    with pytest.raises(TypeError):
        ALLOCATIONS["unstructured"] += ("own",)  # rules are handed over, the table does not change
    assert check_allocation(parse_pattern("unstructured"), "own", rules=["own"]) == "own"
    for pattern in ("2:4", "heads", "blocks"):
        with pytest.raises(UsageError, match="'own' does not go with pattern"):
            check_allocation(parse_pattern(pattern), "own", rules=["own"])
    for text, good, bad in (
        ("unstructured", ("row", "layer", "global"), ("group", "fair")),
        ("2:4", ("group",), ("row", "layer", "global")),
        ("heads", ("layer", "global"), ("row", "group")),
        ("neurons", ("layer", "global"), ("row", "group")),
    ):
        for allocation in good:
            check_allocation(parse_pattern(text), allocation)
        for allocation in bad:
            with pytest.raises(UsageError):
                check_allocation(parse_pattern(text), allocation)


def unit_oracle(means, sparsity, everywhere):
    "group → units that stay: the ⌊s·n⌋ lowest go, of each group or of all; then the best unit of a group is safe."
    if not everywhere:
        return [kept(group, floor_of(sparsity, len(group))) for group in means]
    best = {(g, max(range(len(group)), key=lambda u: (group[u], u))) for g, group in enumerate(means)}
    order = sorted(
        (value, g, u) for g, group in enumerate(means) for u, value in enumerate(group) if (g, u) not in best
    )
    gone = {(g, u) for _, g, u in order[: floor_of(sparsity, sum(map(len, means)))]}
    return [[(g, u) not in gone for u in range(len(group))] for g, group in enumerate(means)]


@pytest.mark.parametrize("name", ["bert", "llama"])
@pytest.mark.parametrize("kind", ["heads", "neurons"])
@pytest.mark.parametrize("allocation", ["layer", "global"])
@pytest.mark.parametrize("sparsity", [0.25, 0.5])
def test_units_are_selected_by_their_mean_score(name, kind, allocation, sparsity):
    "Block 0 scores far below the others, so that one ranking would empty it if its best unit were not safe."
    structure = anatomy(ARCHITECTURES[name]())
    random = torch.Generator().manual_seed(0)
    scores = {
        f"{n}.weight": torch.rand(m.weight.shape, generator=random) + structure.block_of(n)
        for n, m in structure.linears.items()
    }
    masks = select(scores, structure, sparsity, parse_pattern(kind), allocation)
    groups = [getattr(block, kind) for block in structure.blocks]
    means = []
    for group in groups:
        owned = [
            torch.cat(
                [scores[f"{p}.weight"][u * rows : (u + 1) * rows].flatten() for p, rows in group.producers.items()]
                + [scores[f"{group.consumer}.weight"][:, u * group.columns : (u + 1) * group.columns].flatten()]
            )
            for u in range(group.count)
        ]
        means.append([o.double().mean().item() for o in owned])
    for group, expected in zip(groups, unit_oracle(means, sparsity, allocation == "global"), strict=True):
        columns = masks.keep[f"{group.consumer}.weight"]
        assert columns[0].reshape(group.count, -1)[:, 0].tolist() == expected and any(expected)
        assert (columns == columns[:1]).all()  # whole columns
        for producer, rows in group.producers.items():
            assert torch.equal(
                masks.keep[f"{producer}.weight"],
                torch.tensor(expected).repeat_interleave(rows)[:, None].expand(group.count * rows, 32),
            )


def test_each_block_loses_its_own_share_of_units():
    structure = anatomy(ARCHITECTURES["bert"]())
    scores = {
        (block.index, "neurons"): torch.rand(64, generator=torch.Generator().manual_seed(block.index))
        for block in structure.blocks
    }
    backwards = dict(reversed(scores.items()))
    for ranked in (scores, backwards):
        units = select_units(ranked, structure, [0.25, 0.5], parse_pattern("neurons"), "list").units(
            ARCHITECTURES["bert"]()
        )
        assert [int(units[index, "neurons"].sum()) for index in (0, 1)] == [48, 32]


def test_units_that_some_block_does_not_have_are_refused():
    structure = anatomy(ARCHITECTURES["bert"]())
    without = replace(structure, blocks=[structure.blocks[0], replace(structure.blocks[1], heads=None)])
    require_units_left(without, 0.5, "neurons", "layer")
    with pytest.raises(UsageError, match="'heads' needs heads in every block"):
        require_units_left(without, 0.5, "heads", "layer")


# Holding. One model is pruned and then trained in every way that could bring a weight back.


def pruned_model(name="bert", sparsity=0.5):
    model = ARCHITECTURES[name]()
    random = torch.Generator().manual_seed(0)
    masks = Masks(
        {
            f"{n}.weight": keep_highest(torch.rand(m.weight.shape, generator=random), sparsity)
            for n, m in anatomy(model).linears.items()
        }
    )
    masks.apply(model)
    return model, masks


def came_back(model, masks):
    "The oracle: how many pruned weights are not exactly zero (NaN is not zero)."
    parameters = dict(model.named_parameters())
    return sum(int((parameters[name].detach()[~keep] != 0).sum()) for name, keep in masks.keep.items())


OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "adamw-loop": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, foreach=False),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, fused=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9),
}


def train(
    model,
    optimizer="adamw",
    steps=3,
    accumulate=1,
    clip=None,
    autocast=False,
    after_step=lambda: None,
    meddle=lambda: None,
):
    optimizer, model = OPTIMIZERS[optimizer](model.parameters()), model.train()
    for step in range(steps):
        optimizer.zero_grad()
        for part in range(accumulate):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = model(**batch("bert", seed=10 * step + part)).loss
            loss.backward()
        meddle()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        after_step()
    return model


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_held_through_every_optimizer(optimizer):
    model, masks = pruned_model()
    before, counts = copy.deepcopy(model), []
    with masks.hold(model) as held:
        assert held is masks
        train(model, optimizer, after_step=lambda: counts.append(came_back(model, masks)))
    assert counts == [0, 0, 0]
    masks.verify(model)
    moved = [name for name, p in model.named_parameters() if not torch.equal(p, before.get_parameter(name))]
    assert set(masks.keep) <= set(moved)  # the weights that stay were trained
    assert came_back(train(before, optimizer), masks) > 0  # not held, they come back


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_held_against_momentum_from_before(optimizer):
    "The optimizer was running before the pruning: its memory moves weights whose gradient is zero."
    model, data = ARCHITECTURES["bert"](), batch("bert")
    running = OPTIMIZERS[optimizer](model.parameters())

    def step():
        running.zero_grad()
        model(**data).loss.backward()
        running.step()

    for _ in range(3):
        step()
    masks = Masks(
        {f"{n}.weight": keep_highest(m.weight.detach().abs(), 0.5) for n, m in anatomy(model).linears.items()}
    )
    masks.apply(model)
    with masks.hold(model):
        for _ in range(3):
            step()
            assert came_back(model, masks) == 0


@pytest.mark.parametrize(
    "how",
    [dict(clip=0.1), dict(accumulate=3), dict(autocast=True), dict(autocast=True, clip=0.1, accumulate=2)],
    ids=str,
)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_held_through_clipping_accumulation_and_mixed_precision(how, optimizer):
    model, masks = pruned_model()
    counts = []
    with masks.hold(model):
        train(model, optimizer, after_step=lambda: counts.append(came_back(model, masks)), **how)
    assert counts == [0, 0, 0]
    masks.verify(model)


def test_gradients_of_pruned_weights_are_zero_and_do_not_count_in_clipping():
    model, masks = pruned_model()
    free = copy.deepcopy(model)
    for m in (model, free):
        m.eval()
    with masks.hold(model):
        for seed in (0, 1):
            model(**batch("bert", seed=seed)).loss.backward()  # accumulated
        for seed in (0, 1):
            free(**batch("bert", seed=seed)).loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    living, everything = 0.0, 0.0
    for name, parameter in free.named_parameters():
        if parameter.grad is None:
            continue
        keep = masks.keep.get(name, torch.ones_like(parameter, dtype=torch.bool))
        assert torch.allclose(model.get_parameter(name).grad, parameter.grad.where(keep, 0), atol=1e-6)
        living, everything = (
            living + (parameter.grad[keep] ** 2).sum().item(),
            everything + (parameter.grad**2).sum().item(),
        )
    assert norm.item() == pytest.approx(living**0.5, rel=1e-4) and everything > 1.05 * living


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_nan_gradients_on_pruned_weights(optimizer):
    "Written into .grad between backward and step, where no backward hook sees them."
    model, masks = pruned_model()

    def poison():
        for name, keep in masks.keep.items():
            model.get_parameter(name).grad[~keep] = float("nan")

    counts = []
    with masks.hold(model):
        train(model, optimizer, meddle=poison, after_step=lambda: counts.append(came_back(model, masks)))
    assert counts == [0, 0, 0] and all(p.isfinite().all() for p in model.parameters())
    masks.verify(model)


def test_a_loss_with_infinite_slope_at_zero():
    "√|w| has the gradient NaN at a weight of zero; the other weights, and clipping, must not notice."
    model, masks = pruned_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with masks.hold(model):
        for _ in range(3):
            optimizer.zero_grad()
            (
                model(**batch("bert")).loss + sum(model.get_parameter(name).abs().sqrt().sum() for name in masks.keep)
            ).backward()
            assert torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).isfinite()
            optimizer.step()
            assert came_back(model, masks) == 0 and all(p.isfinite().all() for p in model.parameters())


def test_hooks_are_gone_afterwards():
    for fails in (False, True):
        model, masks = pruned_model()
        try:
            with masks.hold(model):
                train(model, steps=1)
                if fails:
                    raise KeyError("from inside")
        except KeyError as error:
            assert fails and "from inside" in str(error)
        assert came_back(model, masks) == 0
        model.zero_grad()
        model(**batch("bert")).loss.backward()
        assert all(model.get_parameter(name).grad[~keep].any() for name, keep in masks.keep.items())  # no gradient hook
        assert came_back(train(model, steps=1), masks) > 0  # no optimizer hook


def test_an_error_inside_is_not_covered_by_verification():
    model, masks = pruned_model()
    with pytest.raises(KeyError):
        with masks.hold(model):
            next(iter(dict(model.named_parameters())[name] for name in masks.keep)).data.fill_(1.0)
            raise KeyError("the cause")


def test_leaving_the_block_verifies():
    model, masks = pruned_model()
    name = list(masks.keep)[-1]
    with pytest.raises(RunError, match=name.replace(".", r"\.")):
        with masks.hold(model):
            model.get_parameter(name).data += 0.1


def test_holding_one_model_leaves_others_alone():
    (first, masks), (second, others) = pruned_model(), pruned_model(sparsity=0.3)
    with masks.hold(first):
        assert came_back(train(second), others) > 0  # another model's optimizer steps while the first is held
        others.apply(second)
        with others.hold(second):
            train(first), train(second)
            assert came_back(first, masks) == came_back(second, others) == 0
        train(first)
        assert came_back(first, masks) == 0
        assert came_back(train(second), others) > 0


def test_frozen_weights_can_be_held():
    for frozen in ("all", "some"):
        model, masks = pruned_model()
        for i, parameter in enumerate(model.parameters()):
            parameter.requires_grad_(frozen == "some" and i % 2 == 0)
        before = [p.requires_grad for p in model.parameters()]
        with masks.hold(model):
            if frozen == "some":
                train(model)
            assert came_back(model, masks) == 0
            assert [p.requires_grad for p in model.parameters()] == before
            model.requires_grad_(True)  # unfrozen on the way, as gradual unfreezing does
            train(model)
            assert came_back(model, masks) == 0
        masks.verify(model)


def test_zeros_survive_casts_and_checkpoints(tmp_path):
    model, masks = pruned_model()
    with masks.hold(model):
        train(model)
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.float32):
        masks.verify(model.to(dtype))
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, tmp_path / "model.safetensors")
    masks.save(tmp_path / "masks.safetensors")
    other = ARCHITECTURES["bert"](seed=1)
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    loaded = Masks.load(tmp_path / "masks.safetensors")
    loaded.verify(other)
    with loaded.hold(other):
        train(other, "sgd")
    assert came_back(other, masks) == 0


def test_held_in_half_precision():
    model, masks = pruned_model()
    model.to(torch.bfloat16)
    with masks.hold(model):
        train(model)
    masks.verify(model)


# Verifying, applying, saving.


def test_apply_zeroes_exactly_the_pruned_weights():
    model = ARCHITECTURES["llama"]()
    before = copy.deepcopy(model)
    name = next(f"{n}.weight" for n in anatomy(model).linears)
    keep = torch.rand(model.get_parameter(name).shape, generator=torch.Generator().manual_seed(0)) > 0.3
    model.get_parameter(name).data[~keep] = float("nan")  # NaN · 0 is not 0
    Masks({name: keep}).apply(model)
    for key, parameter in model.named_parameters():
        expected = before.get_parameter(key)
        assert torch.equal(parameter, expected.where(keep, 0) if key == name else expected)
    assert Masks({name: keep}).sparsity() == pytest.approx((~keep).float().mean().item())


@pytest.mark.parametrize("value", [1e-30, -1.0, float("nan"), float("inf")])
def test_verify_names_the_parameter(value):
    model, masks = pruned_model()
    masks.verify(model)
    for name in (list(masks.keep)[0], list(masks.keep)[5]):
        parameter = model.get_parameter(name)
        place = tuple((~masks.keep[name]).nonzero()[-1].tolist())
        parameter.data[place] = value
        with pytest.raises(RunError, match=name.replace(".", r"\.")) as error:
            masks.verify(model)
        assert not any(other in str(error.value) for other in masks.keep if other != name)
        parameter.data[place] = -0.0  # a zero of either sign is a zero
        masks.verify(model)


def test_masks_of_another_model():
    model, masks = pruned_model()
    for stranger in (ARCHITECTURES["llama"](), ARCHITECTURES["bert"](intermediate_size=32)):
        before = copy.deepcopy(stranger.state_dict())
        for use, kind in (
            (masks.apply, UsageError),
            (lambda m: masks.hold(m).__enter__(), UsageError),
            (masks.verify, (UsageError, RunError)),
        ):
            with pytest.raises(kind) as error:
                use(stranger)
            assert any(name in str(error.value) for name in masks.keep) and "\n" not in str(error.value)
        assert all(torch.equal(value, before[key]) for key, value in stranger.state_dict().items())  # nothing half done


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (8, 8), (13, 29), (7,)])
def test_saved_masks_come_back(tmp_path, shape):
    masks = Masks(
        {
            name: torch.rand(shape, generator=torch.Generator().manual_seed(i)) > 0.5
            for i, name in enumerate(("a.weight", "b.c.weight"))
        }
    )
    masks.save(tmp_path / "m.safetensors")
    again = Masks.load(tmp_path / "m.safetensors")
    assert list(again.keep) == list(masks.keep)
    assert all(again.keep[k].dtype == torch.bool and torch.equal(again.keep[k], masks.keep[k]) for k in masks.keep)
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_saved_masks_take_one_bit_a_weight(tmp_path):
    Masks({"a": torch.ones(1000, 1000, dtype=torch.bool)}).save(tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").stat().st_size < 1000 * 1000 / 8 + 1000


def test_damaged_missing_and_foreign_files(tmp_path):
    _, masks = pruned_model()
    masks.save(tmp_path / "m.safetensors")
    whole = (tmp_path / "m.safetensors").read_bytes()
    damaged = [whole[:length] for length in (0, 4, 20, len(whole) // 2, len(whole) - 1)]
    damaged += [b"no masks at all", bytes(len(whole)), whole[:8] + b"\xff" * 50 + whole[58:]]
    for i, content in enumerate(damaged):
        file = tmp_path / f"damaged-{i}.safetensors"
        file.write_bytes(content)
        with pytest.raises(RunError, match="damaged-") as error:
            Masks.load(file)
        assert "\n" not in str(error.value)
    save_file({"weight": torch.ones(3)}, tmp_path / "foreign.safetensors")
    for file in ("foreign.safetensors", "missing.safetensors"):
        with pytest.raises(RunError, match=file):
            Masks.load(tmp_path / file)


def test_a_changed_byte_is_noticed_or_harmless(tmp_path):
    "In the header or in the bits: never another mask, never an error that is not ours."
    masks = Masks({"a.weight": torch.rand(5, 7, generator=torch.Generator().manual_seed(0)) > 0.5})
    masks.save(tmp_path / "m.safetensors")
    whole, file, wrong = (tmp_path / "m.safetensors").read_bytes(), tmp_path / "changed.safetensors", []
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            found = Masks.load(file).keep
        except RunError:
            continue
        except Exception as error:
            wrong.append((place, type(error).__name__))
            continue
        if found.keys() != masks.keep.keys() or any(not torch.equal(found[k], masks.keep[k]) for k in found):
            wrong.append((place, "another mask"))
    assert not wrong


# Units.


def test_from_units_takes_rows_biases_and_columns():
    "Sizes from tests/architectures.py: 64 neurons and 4 heads of 8 in 32 dimensions."
    model = ARCHITECTURES["bert"]()
    neurons, heads = torch.arange(64) % 3 > 0, torch.tensor([True, False, True, True])
    keep = Masks.from_units(model, {(0, "neurons"): neurons, (1, "heads"): heads}).keep
    first, second = "bert.encoder.layer.0.", "bert.encoder.layer.1."
    dims = heads.repeat_interleave(8)
    expected = {
        first + "intermediate.dense.weight": neurons[:, None].expand(64, 32),
        first + "intermediate.dense.bias": neurons,
        first + "output.dense.weight": neurons.expand(32, 64),
        second + "attention.output.dense.weight": dims.expand(32, 32),
    }
    for role in ("query", "key", "value"):
        expected |= {
            second + f"attention.self.{role}.weight": dims[:, None].expand(32, 32),
            second + f"attention.self.{role}.bias": dims,
        }
    assert keep.keys() == expected.keys() and all(torch.equal(keep[name], expected[name]) for name in expected)
    weights = [mask for name, mask in keep.items() if name.endswith("weight")]
    assert Masks(keep).sparsity() == pytest.approx(
        sum(int((~m).sum()) for m in weights) / sum(m.numel() for m in weights)
    )
    masks = Masks(keep)
    masks.apply(model)
    with masks.hold(model):
        train(model)  # biases are held, too
    assert came_back(model, masks) == 0


def test_from_units_refuses_what_is_no_group():
    model = ARCHITECTURES["llama"]()
    for units in (
        {(0, "layers"): torch.ones(64).bool()},
        {(9, "heads"): torch.ones(2).bool()},
        {(0, "heads"): torch.ones(4).bool()},
        {(0, "neurons"): torch.zeros(64).bool()},
        {(0, "neurons"): torch.ones(64)},
    ):
        with pytest.raises(UsageError):
            Masks.from_units(model, units)
    with pytest.raises(UsageError):
        Masks.from_units(nn.Sequential(nn.Linear(4, 4)), {(0, "heads"): torch.ones(2).bool()})


@pytest.mark.parametrize("leave, words", [
    (lambda layer: torch_prune.l1_unstructured(layer, "weight", 4), "prune.remove\\(module, 'weight'\\)"),
    (nn.utils.parametrizations.weight_norm, "remove_parametrizations\\(module, 'weight'\\)"),
])  # fmt: skip
def test_leftovers_of_other_tools_are_named(leave, words):
    model = ARCHITECTURES["llama"]()
    masks = Masks({name: torch.ones_like(p).bool() for name, p in model.named_parameters() if "proj" in name})
    leave(model.model.layers[-1].mlp.down_proj)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ids = torch.randint(3, 99, (4, 12))
    for use in (
        lambda: masks.apply(model),
        lambda: prune(model, calibration=ids, method="wanda", sparsity=0.5),
        lambda: prune(model, method="magnitude", sparsity=0.5),
    ):
        with pytest.raises(UsageError, match=words) as caught:
            use()
        assert "another model" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_codes_without_scales_rank_other_weights():
    weight = torch.tensor([[4.0, 3.0], [0.2, 0.1]])
    scale = weight.abs().amax(1, keepdim=True) / 127
    codes = (weight / scale).round()
    assert keep_highest(codes, 0.5, per="layer").tolist() == [[True, False], [True, False]]  # 127, 95, 127, 64
    assert keep_highest(codes * scale, 0.5, per="layer").tolist() == [[True, True], [False, False]]


def test_an_adapter_merged_into_zeros_is_noticed():
    torch.manual_seed(0)
    line, keep = nn.Linear(8, 8, bias=False), torch.rand(8, 8) > 0.5
    masks = Masks({"weight": keep})
    masks.apply(line)
    a, b = torch.randn(2, 8), torch.randn(8, 2)
    line.weight.data += b @ a
    with pytest.raises(RunError, match="weight does not hold"):
        masks.verify(line)
    line.weight.data *= keep  # trained under the mask, (W + BA) ⊙ M
    masks.verify(line)
