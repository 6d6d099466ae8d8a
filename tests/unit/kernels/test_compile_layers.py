"""Compiled blocks compute the same as the model's own blocks, and their dropout is dropout."""

import copy
import gc
import json

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    MPNetConfig,
    MPNetForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from ds_distill.kernels.compile_layers import compile_layers
from ds_distill.kernels.dropout import CounterDropout, counter_dropout
from ds_distill.kernels.prepacked_linear import _PACKED, prepack_linears
from ds_distill.models.intermediates import LAST_HIDDEN, Site, run_encoder
from ds_distill.models.student import build_student
from ds_distill.models.teacher import Teacher, weights_fingerprint
from ds_distill.training.compile import compile_unavailable_reason
from tests.unit.models.test_teacher import padding_mask, tiny_deberta, tokens

CPU = torch.device("cpu")


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_drops_its_share_anew_each_time_and_the_same_under_the_same_seed(p):
    ones, n = torch.ones(300, 7, 97), 300 * 7 * 97
    torch.manual_seed(1)
    first, second = counter_dropout(ones, p), counter_dropout(ones, p)
    torch.manual_seed(1)
    assert torch.equal(counter_dropout(ones, p), first)
    sigma = (p * (1 - p) / n) ** 0.5
    for x in (first, second):
        assert set(x.unique().tolist()) == {0.0, x.max().item()} and x.max().item() == pytest.approx(1 / (1 - p))
        assert abs((x == 0).double().mean() - p) < 5 * sigma
    a, b = ((x.flatten() == 0).double() - p for x in (first, second))
    for other in (
        b,
        a.roll(1),
        a.roll(97),
        a.roll(64),
    ):  # another call, a neighbour, the next row, the next vector register
        assert abs((a * other).mean()) < 5 * sigma**2 * n**0.5, "not independent"


def test_the_gradient_is_dropped_where_the_value_is():
    x = torch.randn(64, 65, dtype=torch.float64, requires_grad=True)
    y = CounterDropout(0.3)(x)
    y.sum().backward()
    assert torch.equal(x.grad, torch.where(y == 0, 0.0, x.detach().new_full(x.shape, 1 / 0.7)))
    assert CounterDropout(0.3).eval()(x) is x and CounterDropout(0.0)(x) is x


def student(family: str, dropout: float):
    torch.manual_seed(0)
    shape = {
        "vocab_size": 61,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 48,
    }
    if family == "bert":
        teacher = BertForMaskedLM(BertConfig(**shape, max_position_embeddings=32))
    elif family == "roberta":
        teacher = RobertaForMaskedLM(RobertaConfig(**shape, max_position_embeddings=34, pad_token_id=1))
    elif family == "electra":
        teacher = ElectraForMaskedLM(ElectraConfig(**shape, embedding_size=16, max_position_embeddings=32))
    else:
        teacher = MPNetForMaskedLM(MPNetConfig(**shape, max_position_embeddings=34))
    return build_student(teacher.eval(), dropout=dropout).double().train()


REAL = torch.arange(24) < torch.tensor([24, 9, 17])[:, None]
DOCUMENT = torch.arange(24)[None] // 7
# in documents, the padding's own rows see nothing
DOCUMENTS = ((DOCUMENT[:, :, None] == DOCUMENT[:, None]) & REAL[:, None] & REAL[:, :, None])[:, None]
MASKS = {"none": None, "padding": REAL, "documents": DOCUMENTS}


def needs_compile():
    if reason := compile_unavailable_reason():
        pytest.skip(f"torch.compile: {reason}")


# each compiles for 10 s
CASES = [(family, mask) for family in ("bert", "roberta", "mpnet", "electra") for mask in MASKS]


@pytest.mark.parametrize(
    "family, mask",
    [pytest.param(*case, marks=() if case == ("bert", "documents") else pytest.mark.long) for case in CASES],
)
def test_compiled_blocks_compute_what_the_models_own_do(family, mask):
    needs_compile()
    ids = torch.randint(5, 61, (3, 24), generator=torch.Generator().manual_seed(0))
    reference = student(family, 0.0)
    compiled = copy.deepcopy(reference)
    compile_layers(compiled, CPU)
    outputs = []
    for model in (reference, compiled):
        hidden, _ = run_encoder(model, ids, MASKS[mask])
        (hidden[REAL].sin().sum()).backward()
        outputs.append([hidden[REAL].detach(), *(p.grad for p in model.base_model.parameters() if p.grad is not None)])
    assert len(outputs[0]) == len(outputs[1]) > 20
    for expected, actual in zip(*outputs, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-7)  # softmax in float32
    assert [n for n, _ in compiled.named_parameters()] == [n for n, _ in reference.named_parameters()]


@pytest.mark.long
def test_compiled_blocks_of_a_family_with_attention_of_its_own():
    needs_compile()
    ids, mask = tokens(), padding_mask()
    reference = build_student(tiny_deberta(2), init_layers=[1], dropout=0.0).double().train()
    compiled, outputs = copy.deepcopy(reference), []
    compile_layers(compiled, CPU)
    for model in (reference, compiled):
        hidden, _ = run_encoder(model, ids, mask)
        hidden[mask].sin().sum().backward()
        outputs.append([hidden[mask].detach(), *(p.grad for p in model.base_model.parameters())])
    for expected, actual in zip(*outputs, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-7)


def modernbert(layers: int = 4, **changes) -> ModernBertForMaskedLM:
    torch.manual_seed(0)
    shape = {"vocab_size": 61, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
    shape |= {"num_hidden_layers": layers, "local_attention": 8, "pad_token_id": 0, "max_position_embeddings": 32}
    return ModernBertForMaskedLM(ModernBertConfig(**(shape | changes))).eval()


@pytest.mark.long
def test_compiled_layers_of_two_kinds_compute_what_the_models_own_do():
    """A layer that attends to all others, one that attends to its neighbors, and recorded queries and keys."""
    needs_compile()
    ids = torch.randint(5, 61, (3, 24), generator=torch.Generator().manual_seed(0))
    reference = build_student(modernbert(), init_layers=[0, 1, 3], dropout=0.0).double().train()
    assert reference.config.layer_types == ["full_attention", "sliding_attention", "full_attention"]
    compiled = copy.deepcopy(reference)
    compile_layers(compiled, CPU)
    sites = [Site("query", 1), Site("key", 2)]
    for mask in (None, DOCUMENTS):
        outputs = []
        for model in (reference, compiled):
            model.zero_grad()
            hidden, states = run_encoder(model, ids, mask, sites=sites)
            kept = [hidden, *states.values()]
            sum(x[REAL].sin().sum() for x in kept).backward()
            gradients = [p.grad for p in model.base_model.parameters() if p.grad is not None]
            outputs.append([*(x[REAL].detach() for x in kept), *gradients])
        assert len(outputs[0]) == len(outputs[1]) > 15
        for expected, actual in zip(*outputs, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_gradient_of_compiled_dropout_is_its_derivative(checkpointing):
    """The gradient must equal the central differences of the loss, which is smooth in the weights for a fixed seed."""
    needs_compile()
    ids = torch.randint(5, 61, (3, 24), generator=torch.Generator().manual_seed(0))
    model = student("bert", 0.2)
    compile_layers(model, CPU)
    if checkpointing:  # recomputation in the backward pass must drop the same values
        model.gradient_checkpointing_enable()

    def loss(seed: int = 5) -> torch.Tensor:
        torch.manual_seed(seed)
        return model.base_model(input_ids=ids).last_hidden_state.sin().sum()

    loss().backward()
    for name in (
        "transformer.layer.0.attention.q_lin.weight",
        "transformer.layer.1.ffn.lin1.weight",
        "embeddings.position_embeddings.weight",
    ):
        weight = model.base_model.get_parameter(name)
        way = torch.randn_like(weight)
        along = []
        for step in (1e-4, -1e-4):
            with torch.no_grad():
                weight += step * way
            along.append(float(loss().detach()))
            with torch.no_grad():
                weight -= step * way
        assert (along[0] - along[1]) / 2e-4 == pytest.approx(float((weight.grad * way).sum()), rel=1e-3)
    again, other = (float(loss(seed).detach()) for seed in (5, 6))
    assert again == float(loss().detach()) and again != other


def test_bf16_is_no_further_from_fp32_than_the_models_own_attention():
    """Scores are a bf16 product here, while torch's kernel keeps them in fp32."""
    needs_compile()
    torch.manual_seed(0)
    shape = {
        "vocab_size": 61,
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 96,
    }
    bert = BertForMaskedLM(
        BertConfig(**shape, max_position_embeddings=64, initializer_range=0.3)
    ).eval()  # sharp attention
    ids = torch.randint(5, 61, (4, 64))
    compiled, reference = copy.deepcopy(bert).bfloat16(), copy.deepcopy(bert).bfloat16()
    compile_layers(compiled, CPU)
    with torch.no_grad():
        exact, there, here = (
            m.base_model(input_ids=ids).last_hidden_state.float() for m in (bert, reference, compiled)
        )
    assert (here - exact).norm() < 1.25 * (there - exact).norm()


def test_an_export_shows_no_trace(tmp_path):
    model = student("bert", 0.1)
    compile_layers(model, CPU)
    model.save_pretrained(tmp_path)
    assert "written_out" not in (tmp_path / "config.json").read_text()
    assert json.loads((tmp_path / "config.json").read_text())["dropout"] == 0.1


@pytest.mark.parametrize("make", ["bert", "modernbert"])
def test_packed_weights_compute_what_plain_ones_do(make):
    if not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("no bf16 in oneDNN here")
    torch.manual_seed(0)
    shape = {
        "vocab_size": 61,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
    }
    bert = BertForMaskedLM(BertConfig(**shape, max_position_embeddings=32))
    plain = Teacher((bert if make == "bert" else modernbert(2)).bfloat16())
    packed = Teacher(copy.deepcopy(plain.model))
    prepack_linears(packed.model)
    count = sum(type(m).__name__ == "_PackedLinear" for m in packed.model.modules())
    assert count == (12 if make == "bert" else 8)
    ids = torch.randint(5, 61, (3, 24))
    expected = plain.targets(ids).states[LAST_HIDDEN].float()
    for teacher in (packed, Teacher(copy.deepcopy(packed.model))):
        torch.testing.assert_close(teacher.targets(ids).states[LAST_HIDDEN].float(), expected, rtol=2e-2, atol=2e-2)
        assert weights_fingerprint(teacher.model) == weights_fingerprint(plain.model)
        teacher.assert_frozen()
    entries = len(_PACKED)
    del packed, teacher
    gc.collect()
    assert len(_PACKED) == entries - count, "a packed copy outlives its model"
