"""The model itself: chained stages are the whole model, in values and gradients; boundaries start as truncate-then-pad.

Tolerances here are those of float32 sums in another order: a few 1e-6 of values of order one.
"""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from subnet import presets
from subnet.errors import InvariantViolation
from subnet.model import flat
from subnet.model.bottleneck import Decoder, Encoder
from subnet.model.initial import initial_parameters
from subnet.model.loss import SLICE_ROWS, linear_cross_entropy
from subnet.model.modules import RMSNorm
from subnet.model.spec import shapes_of
from subnet.model.stage import PipelineStage
from subnet.model.transformer import Block, rotary_table, rotate
from subnet.protocol.ids import Digest, RunId, Stage
from subnet.protocol.keys import ObjectKey
from subnet.protocol.run_spec import DataFile, DataSpec, RunSpec

FILE = DataFile(key=ObjectKey("run/0/0/text/data"), digest=Digest("0" * 64), size_bytes=1)
DATA = DataSpec(tokenizer=FILE, train=(FILE,), validation=(FILE,), micro_batch_size=2, seq_len=16)


def make_spec(num_stages: int, width: int | None = None, **boundary: object) -> RunSpec:
    preset = presets.equivalence(presets.Size(num_stages, num_stages, 1), width=width)
    preset = preset._replace(boundary=msgspec.structs.replace(preset.boundary, **boundary))
    return presets.run_spec(preset, run_id=RunId("run"), seed=7, num_stages=num_stages, data=DATA)


def built(spec: RunSpec, stage: int) -> tuple[PipelineStage, tuple[nn.Parameter, ...], Tensor]:
    shapes = shapes_of(spec, stage)
    vector_P = flat.to_flat(initial_parameters(spec, Stage(stage)), shapes, "cpu")
    module, leaves = PipelineStage(spec, Stage(stage), "cpu"), flat.leaves(vector_P, shapes)
    module.bind(leaves)
    return module, leaves, vector_P


def some_tokens(spec: RunSpec, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    tokens_BT1 = torch.randint(0, spec.model.vocab_size, (2, 17), generator=random)
    return tokens_BT1[:, :-1].contiguous(), tokens_BT1[:, 1:].contiguous()


def fill(module: nn.Module, random: torch.Generator) -> None:
    """Random values in place of the placeholders."""
    for part in module.modules():
        for name, value in part._parameters.items():
            part._parameters[name] = nn.Parameter(0.3 * torch.randn(value.shape, generator=random))


@pytest.mark.parametrize("num_stages", [2, 3, 4])
def test_chained_stages_are_the_whole_model(num_stages: int) -> None:
    """1. With x itself crossing in fp32, cutting the model changes neither logits, loss nor any gradient."""
    whole, cut = make_spec(1), make_spec(num_stages)
    tokens_BT, targets_BT = some_tokens(whole)
    one, one_leaves, _ = built(whole, 0)
    parts = [built(cut, stage) for stage in range(num_stages)]
    z_BTK = None
    for module, _, _ in parts[:-1]:
        z_BTK = module(z_BTK, tokens_BT)
    assert torch.allclose(parts[-1][0](z_BTK, tokens_BT), one(None, tokens_BT), atol=1e-6)
    loss, expected = parts[-1][0].loss(z_BTK, tokens_BT, targets_BT), one.loss(None, tokens_BT, targets_BT)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    names = [name for stage in range(num_stages) for name, _ in shapes_of(cut, stage)]
    leaves = [leaf for _, stage_leaves, _ in parts for leaf in stage_leaves]
    found = dict(zip(names, torch.autograd.grad(loss, leaves), strict=True))
    wanted = zip(shapes_of(whole, 0), torch.autograd.grad(expected, one_leaves), strict=True)
    for (name, _), gradient in wanted:
        assert torch.allclose(found[name], gradient, atol=1e-6), name


def test_gradients_handed_from_stage_to_stage_equal_autograd_end_to_end() -> None:
    """2. Each miner differentiates its own stage only; K = 8 and a token table, so every slot takes part."""
    spec = make_spec(3, width=8)
    tokens_BT, targets_BT = some_tokens(spec)
    parts = [built(spec, stage) for stage in range(3)]
    for _, _, vector_P in parts:  # away from the zeros that encoders, decoders and tables start with
        vector_P += 0.02 * torch.randn(len(vector_P), generator=torch.Generator().manual_seed(len(vector_P)))
    (first, first_leaves, _), (middle, middle_leaves, _), (last, last_leaves, _) = parts

    z0_BTK = first(None, tokens_BT)
    z1_BTK = middle(z0_BTK, tokens_BT)
    loss = last.loss(z1_BTK, tokens_BT, targets_BT)
    wanted = torch.autograd.grad(loss, (*first_leaves, *middle_leaves, *last_leaves))

    sent0_BTK = first(None, tokens_BT)
    got0_BTK = sent0_BTK.detach().requires_grad_()
    sent1_BTK = middle(got0_BTK, tokens_BT)
    got1_BTK = sent1_BTK.detach().requires_grad_()
    loss = last.loss(got1_BTK, tokens_BT, targets_BT)
    back1_BTK, *last_grads = torch.autograd.grad(loss, (got1_BTK, *last_leaves))
    back0_BTK, *middle_grads = torch.autograd.grad(sent1_BTK, (got0_BTK, *middle_leaves), back1_BTK)
    first_grads = torch.autograd.grad(sent0_BTK, first_leaves, back0_BTK)
    for gradient, expected in zip((*first_grads, *middle_grads, *last_grads), wanted, strict=True):
        assert torch.equal(gradient, expected)
        assert expected.abs().max() > 0, "a parameter that nothing reaches"


@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize("width", [1, 8, 32])
def test_a_boundary_starts_as_truncate_then_pad(width: int, table: bool) -> None:
    """3. At initialisation E and D add exactly nothing: bit for bit, not approximately.

    A token table fills the padding, and only it, with the columns of the token's embedding that did not cross.
    """
    spec = make_spec(2, width=width, token_table=table)
    tokens_BT, _ = some_tokens(spec)
    first, _, _ = built(spec, 0)
    second, _, _ = built(spec, 1)
    x_BTD = first.entry(None, tokens_BT)
    for block in first.layers.values():
        x_BTD = block(x_BTD)
    z_BTK = first.exit(x_BTD)
    assert torch.equal(z_BTK, x_BTD[..., :width])
    y_BTD = second.entry(z_BTK, tokens_BT)
    assert torch.equal(y_BTD[..., :width], z_BTK)
    padding_BTD = first.entry(None, tokens_BT) if table else torch.zeros(2, 16, 32)
    assert torch.equal(y_BTD[..., width:], padding_BTD[..., width:])


def test_the_control_sends_nothing_and_still_trains() -> None:
    """4. Width 0: the second stage sees its token table only, the first gets a gradient of zeros."""
    spec = make_spec(2, width=0)
    tokens_BT, targets_BT = some_tokens(spec)
    first, first_leaves, _ = built(spec, 0)
    second, _, _ = built(spec, 1)
    sent_BTK = first(None, tokens_BT)
    assert sent_BTK.shape == (2, 16, 0)
    got_BTK = sent_BTK.detach().requires_grad_()
    (back_BTK,) = torch.autograd.grad(second.loss(got_BTK, tokens_BT, targets_BT), got_BTK)
    assert back_BTK.shape == (2, 16, 0)
    assert all((gradient == 0).all() for gradient in torch.autograd.grad(sent_BTK, first_leaves, back_BTK))


@pytest.mark.parametrize(("width", "table"), [(0, False), (0, True), (32, True), (4, False)])
def test_slots_hold_what_the_layout_says(width: int, table: bool) -> None:
    """5. Encoders, decoders and tables exist exactly where the flat vector has room for them."""
    spec = make_spec(3, width=width, token_table=table)
    for stage in range(3):
        PipelineStage(spec, Stage(stage), "cpu")
    names = {name for name, _ in shapes_of(spec, 1)}
    assert ("entry.table.weight" in names) == table
    assert ("exit.up.weight" in names) == (0 < width < 32)


def test_a_layout_that_the_modules_do_not_follow_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    """6. Somebody reorders the shapes: every stage refuses to be built, instead of training scrambled tensors."""
    spec = make_spec(2)
    monkeypatch.setattr("subnet.model.stage.shapes_of", lambda spec, stage: shapes_of(spec, stage)[::-1])
    with pytest.raises(InvariantViolation):
        PipelineStage(spec, Stage(0), "cpu")


def test_leaves_share_the_flat_vectors_storage() -> None:
    """7. The optimizer writes the flat vector, and the next forward sees it without a copy."""
    spec = make_spec(2)
    module, leaves, vector_P = built(spec, 1)
    assert leaves[0].data_ptr() == vector_P.data_ptr()
    assert sum(leaf.numel() for leaf in leaves) == len(vector_P) == spec.stages[1].num_params
    tokens_BT, _ = some_tokens(spec)
    before = module(torch.ones(2, 16, 32), tokens_BT)
    with torch.no_grad():
        vector_P.mul_(0.5)
    assert not torch.allclose(before, module(torch.ones(2, 16, 32), tokens_BT))
    assert np.array_equal(flat.to_numpy(vector_P), vector_P.numpy())
    with pytest.raises(ValueError):
        flat.to_flat(np.zeros(3, np.float32), shapes_of(spec, 1), "cpu")


def test_no_token_sees_the_future() -> None:
    """8. Changing the last token leaves all earlier logits as they were."""
    module, _, _ = built(make_spec(1), 0)
    tokens_BT, _ = some_tokens(make_spec(1))
    changed_BT = tokens_BT.clone()
    changed_BT[:, -1] = (changed_BT[:, -1] + 1) % 256
    before_BTV, after_BTV = module(None, tokens_BT), module(None, changed_BT)
    assert torch.equal(before_BTV[:, :-1], after_BTV[:, :-1])
    assert not torch.equal(before_BTV[:, -1], after_BTV[:, -1])


def test_rotary_scores_depend_on_distance_alone() -> None:
    """9. Query at 5 and key at 3 score as query at 12 and key at 10; lengths are kept."""
    model = make_spec(1).model
    turns_T1h = rotary_table(model, 16, "cpu")
    query, key = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(1))

    def score(at: int, of: int) -> float:
        return float((rotate(query, turns_T1h[at : at + 1]) * rotate(key, turns_T1h[of : of + 1])).sum())

    assert score(5, 3) == pytest.approx(score(12, 10), abs=1e-5)
    assert score(5, 3) != pytest.approx(score(5, 2), abs=1e-3)
    assert float(rotate(query, turns_T1h[9:10]).norm()) == pytest.approx(float(query.norm()), rel=1e-6)
    assert torch.equal(rotate(query, turns_T1h[:1]), query)


def test_the_norm_and_its_gradient_equal_torchs() -> None:
    """10. RMSNorm has a gradient of its own: values and both gradients are those of `F.rms_norm`."""
    model = make_spec(1).model
    norm, random = RMSNorm(model), torch.Generator().manual_seed(4)
    weight_D = torch.rand(32, generator=random).requires_grad_()
    norm._parameters["weight"] = nn.Parameter(weight_D.detach())
    x_BTD = torch.randn(2, 16, 32, generator=random).requires_grad_()
    grad_BTD = torch.randn(2, 16, 32, generator=random)
    expected_BTD = F.rms_norm(x_BTD, (32,), weight_D, model.norm_eps)
    assert torch.allclose(norm(x_BTD), expected_BTD, atol=1e-6)
    found = torch.autograd.grad(norm(x_BTD), (x_BTD, norm.weight), grad_BTD)
    wanted = torch.autograd.grad(expected_BTD, (x_BTD, weight_D), grad_BTD)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, wanted, strict=True))


def test_attention_equals_its_definition() -> None:
    """11. Grouped-query attention by hand: two query heads share a key head, softmax over the past."""
    spec = make_spec(1)
    block = Block(spec.model, rotary_table(spec.model, 16, "cpu"))
    random = torch.Generator().manual_seed(3)
    fill(block, random)
    x_BTD = torch.randn(2, 16, 32, generator=random)
    heads = block.qkv(x_BTD).view(2, 16, 8, 8)
    turns = block.turns_T1h
    query, key = rotate(heads[:, :, :4], turns), rotate(heads[:, :, 4:6], turns).repeat_interleave(2, dim=2)
    value = heads[:, :, 6:].repeat_interleave(2, dim=2)
    scores = torch.einsum("bthd,bshd->bhts", query, key) / 8**0.5
    scores = scores.masked_fill(torch.ones(16, 16).triu(1).bool(), float("-inf"))
    mixed = torch.einsum("bhts,bshd->bthd", scores.softmax(-1), value).reshape(2, 16, 32)
    assert torch.allclose(block._attention(x_BTD), block.out(mixed), atol=1e-5)


@pytest.mark.parametrize("num_rows", [1, SLICE_ROWS, 2 * SLICE_ROWS + 3])
def test_the_sliced_loss_equals_torchs(num_rows: int) -> None:
    """12. Value and both gradients, with a last slice that is shorter, scaled by what comes after."""
    random = torch.Generator().manual_seed(5)
    x_ND = torch.randn(num_rows, 12, generator=random).requires_grad_()
    head_VD = torch.randn(50, 12, generator=random).requires_grad_()
    targets_N = torch.randint(0, 50, (num_rows,), generator=random)
    loss = linear_cross_entropy(x_ND, head_VD, targets_N)
    expected = F.cross_entropy(F.linear(x_ND, head_VD), targets_N)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    found = torch.autograd.grad(loss * 3, (x_ND, head_VD))
    wanted = torch.autograd.grad(expected * 3, (x_ND, head_VD))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, wanted, strict=True))
    with torch.no_grad():
        assert float(linear_cross_entropy(x_ND, head_VD, targets_N)) == loss.item()


def test_the_loss_is_exact_where_probabilities_underflow_and_nan_where_the_input_is() -> None:
    """13. A diverged model puts its target 10,000 nats down: that is what is reported, not a cap; NaN stays NaN."""
    head_VD, targets_N = torch.eye(3) * 100, torch.tensor([1])
    loss = linear_cross_entropy(torch.tensor([[100.0, 0.0, 0.0]]), head_VD, targets_N)
    assert float(loss) == pytest.approx(10_000, rel=1e-6)
    assert torch.isnan(linear_cross_entropy(torch.tensor([[float("nan"), 0.0, 0.0]]), head_VD, targets_N))


def test_the_boundary_formula_holds_with_learned_weights() -> None:
    """14. z = E(x) + x[:K] and y = D(z) + pad(z) + P[token], written out."""
    spec = make_spec(2, width=8)
    encoder = Encoder(spec.model, spec.boundary)
    decoder = Decoder(spec.model, spec.boundary)
    random = torch.Generator().manual_seed(2)
    fill(encoder, random)
    fill(decoder, random)
    x_BTD, tokens_BT = torch.randn(2, 16, 32, generator=random), some_tokens(spec)[0]
    normed_BTD = x_BTD * torch.rsqrt(x_BTD.square().mean(-1, keepdim=True) + 1e-5) * encoder.norm.weight
    z_BTK = F.silu(normed_BTD @ encoder.up.weight.T) @ encoder.down.weight.T + x_BTD[..., :8]
    assert torch.allclose(encoder(x_BTD), z_BTK, atol=1e-5)
    padded_BTD = torch.cat((z_BTK, torch.zeros(2, 16, 24)), dim=-1)
    y_BTD = F.silu(z_BTK @ decoder.up.weight.T) @ decoder.down.weight.T + padded_BTD + decoder.table.weight[tokens_BT]
    assert torch.allclose(decoder(z_BTK, tokens_BT), y_BTD, atol=1e-5)
