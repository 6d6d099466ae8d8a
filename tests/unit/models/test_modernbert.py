"""Test what only ModernBERT has: local layers, rotary positions, fused weights, and a first layer without a norm."""

import copy
import json

import pytest
import torch
from transformers.masking_utils import create_bidirectional_sliding_window_mask

from ds_distill.data.batch import compute_cu_seqlens
from ds_distill.estimate.flops import forward_flops_per_token, linear_shapes
from ds_distill.losses.objective import Objective
from ds_distill.models import varlen_attention
from ds_distill.models.attention_mask import make_attention_mask
from ds_distill.models.families import get_family
from ds_distill.models.intermediates import LAST_HIDDEN, Site, run_encoder
from ds_distill.models.learnable import freeze_all_but
from ds_distill.models.loading import load_masked_lm
from ds_distill.models.student import build_student
from ds_distill.models.student_plan import plan_student
from ds_distill.models.teacher import Teacher
from ds_distill.recipe import Losses, Match
from ds_distill.utils.errors import UserError
from tests.unit.models.test_teacher import padding_mask, randomised, tiny_bert, tiny_modernbert, tokens

GLOBAL, LOCAL = "full_attention", "sliding_attention"
WINDOW = 4  # of tiny_modernbert, to either side
DOCUMENTS = torch.tensor([[0] * 5 + [1] * 7, [0] * 12, [0] * 10 + [1] * 2])


def document_mask():
    return (DOCUMENTS[:, :, None] == DOCUMENTS[:, None])[:, None]


def one_layer(kind: str):
    return tiny_modernbert(1, layer_types=[kind])


def seen_by(model, mask, query: int) -> set[int]:
    """Return the positions at which another token changes the hidden states of `query`."""
    ids = tokens()
    with torch.no_grad():
        before = run_encoder(model, ids, mask)[0][:, query]
        seen = set()
        for position in range(ids.shape[1]):
            changed = ids.clone()
            changed[:, position] = 100 - ids[:, position] // 2
            after = run_encoder(model, changed, mask)[0][:, query]
            if ((after - before).abs().amax(-1) > 1e-6)[0]:
                seen.add(position)
    return seen


@pytest.mark.parametrize(("mask", "end"), [(None, 12), (torch.ones(3, 12, dtype=torch.bool), 12), ("documents", 5)])
def test_a_local_layer_sees_its_window_and_a_global_one_all(mask, end):
    mask = document_mask() if mask == "documents" else mask
    assert seen_by(one_layer(LOCAL), mask, 0) == set(range(min(end, WINDOW + 1)))
    assert seen_by(one_layer(LOCAL), mask, 3) == set(range(min(end, 3 + WINDOW + 1)))
    assert seen_by(one_layer(GLOBAL), mask, 0) == set(range(end))


def test_packed_documents_compute_what_they_do_alone():
    model, ids = tiny_modernbert(4), tokens()
    with torch.no_grad():
        packed = run_encoder(model, ids, document_mask())[0]
        for row, documents in enumerate(DOCUMENTS):
            for number in documents.unique():
                alone = model(ids[row][documents == number][None], output_hidden_states=True).hidden_states[-1][0]
                # rotary positions count distances alone
                torch.testing.assert_close(packed[row][documents == number], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [WINDOW, WINDOW + 1, WINDOW + 2, 12])
def test_masks_are_those_of_transformers(length):
    model = tiny_modernbert()
    padding, ids = padding_mask()[:, :length], tokens()[:, :length]
    states = model.get_input_embeddings()(ids)
    own = create_bidirectional_sliding_window_mask(model.config, states, padding, allow_is_bidirectional_skip=False)
    masks = make_attention_mask(model, padding, ids)
    assert torch.equal(masks[LOCAL], own)
    assert torch.equal(masks[GLOBAL], padding[:, None, None].expand(-1, 1, length, length))
    own = create_bidirectional_sliding_window_mask(model.config, states, None, allow_is_bidirectional_skip=False)
    masks = make_attention_mask(model, None, ids)
    assert masks[GLOBAL] is None
    assert own.all() if masks[LOCAL] is None else torch.equal(masks[LOCAL].expand_as(own), own)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padding_beyond_every_window_leaves_the_states_finite(dtype):
    """Its queries see no token at all."""
    model = tiny_modernbert(2).to(dtype)
    mask = torch.arange(24).expand(3, -1) < 3
    assert run_encoder(model, tokens(3, 24), mask)[0].isfinite().all()


def test_biases_are_copied_where_there_are_any():
    biased = dict.fromkeys(("attention_bias", "mlp_bias", "norm_bias", "classifier_bias"), True)
    teacher = tiny_modernbert(4, **biased)
    student = build_student(teacher, init_layers=[0, 1, 2, 3]).eval()
    with torch.no_grad():
        expected = teacher(tokens()).logits
        assert (student(tokens()).logits - expected).abs().max() <= 1e-5 * expected.abs().max()
    half = get_family(teacher).get_layers(build_student(teacher, hidden_size=16))[0]
    bias = get_family(teacher).get_layers(teacher)[0].attn.Wqkv.bias
    assert torch.equal(half.attn.Wqkv.bias, torch.cat([part[:16] for part in bias.chunk(3)]))


def test_layers_keep_their_kinds():
    config = tiny_modernbert(7).config
    types = config.layer_types
    assert types == [GLOBAL, LOCAL, LOCAL] * 2 + [GLOBAL]
    for layers in ([0, 1, 3, 4], [0, 2, 6]):
        _, student = plan_student(config, init_layers=layers)
        assert student.layer_types == [types[layer] for layer in layers] and student.num_hidden_layers == len(layers)
    _, student = plan_student(config, init_layers="random", num_layers=5)
    assert student.layer_types == types[:5]
    _, student = plan_student(config, init_layers="random", num_layers=9)
    assert len(student.layer_types) == 9
    assert config.layer_types == types and config.num_hidden_layers == 7


@pytest.mark.parametrize("position_type", ["absolute", "sans_pos"])  # the second in Ettin's and mmBERT's configs
def test_a_folder_of_an_earlier_transformers_is_read(tmp_path, position_type):
    """Its config names neither the layers' kinds nor the rotary parameters; those of the student that is saved do."""
    model = tiny_modernbert(5, layer_types=[GLOBAL, LOCAL] * 2 + [GLOBAL])
    for parameters in model.config.rope_parameters.values():
        parameters["rope_theta"] = 160.0
    model = randomised(type(model)(model.config))
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["layer_types"], config["rope_parameters"]
    config |= {"global_attn_every_n_layers": 2, "global_rope_theta": 160.0, "local_rope_theta": 160.0}
    config |= {"position_embedding_type": position_type, "reference_compile": False, "repad_logits_with_grad": False}
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load_masked_lm(str(tmp_path))
    assert torch.equal(loaded(tokens()).logits, model(tokens()).logits)
    student = build_student(loaded, init_layers=[0, 2, 3]).eval()
    student.save_pretrained(tmp_path / "student")
    again = load_masked_lm(str(tmp_path / "student"))
    assert again.config.layer_types == [GLOBAL, GLOBAL, LOCAL]
    assert torch.equal(again(tokens()).logits, student(tokens()).logits)


def test_a_narrower_student_takes_the_first_rows_of_each_part():
    teacher = tiny_modernbert(4)
    student = build_student(teacher, hidden_size=16, intermediate_size=20)
    own, other = (get_family(model).get_layers(model)[1] for model in (student, teacher))
    source = get_family(teacher).get_layers(teacher)[plan_student(teacher.config)[0][1]]
    assert not torch.equal(source.attn.Wqkv.weight, other.attn.Wqkv.weight)
    assert torch.equal(own.attn.Wqkv.weight, torch.cat([x[:16, :16] for x in source.attn.Wqkv.weight.chunk(3)]))
    assert torch.equal(own.mlp.Wi.weight, torch.cat([x[:20, :16] for x in source.mlp.Wi.weight.chunk(2)]))
    assert torch.equal(own.attn.Wo.weight, source.attn.Wo.weight[:16, :16])
    assert own.attn.head_dim == source.attn.head_dim


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([0, 2, 3], None),
        ([1, 2], "that of the teacher's layer 1 is dropped, so"),
        ([0, 3, 0], "in student layer 2 it starts with weights of 1, so"),
        ([2, 0], "that of the teacher's layer 2 is dropped and in student layer 1 it starts with weights of 1, so"),
    ],
)
def test_a_norm_that_the_first_layer_lacks_is_dropped_or_new(layers, said, capsys):
    teacher = tiny_modernbert(4)
    student = build_student(teacher, init_layers=layers)
    lines = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(lines) == (said is not None) and (said is None or said in lines[0])
    for number, (own, layer) in enumerate(zip(student.model.layers, layers, strict=True)):
        source = teacher.model.layers[layer]
        assert torch.equal(own.attn.Wqkv.weight, source.attn.Wqkv.weight)
        if number:
            wanted = source.attn_norm.weight if layer else torch.ones(32)
            assert torch.equal(own.attn_norm.weight, wanted)
        else:
            assert not list(own.attn_norm.parameters())
    if said is None or layers[0] == 0:
        return
    # What is dropped is the norm alone: the teacher's layer computes the same without it.
    with torch.no_grad():
        source = copy.deepcopy(teacher.model.layers[layers[0]])
        source.attn_norm = torch.nn.Identity()
        hidden = student.eval().model.embeddings(tokens())
        inputs = get_family(teacher).layer_inputs(teacher.model, source, hidden)
        assert torch.equal(student.model.layers[0](hidden, None, **inputs), source(hidden, None, **inputs))


def test_there_are_no_positions_to_freeze(tmp_path):
    teacher = tiny_modernbert()
    with pytest.raises(
        UserError, match=r"student\.freeze_positions = true: this modernbert has no position embeddings"
    ):
        build_student(teacher, freeze_positions=True)
    teacher.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="nothing to freeze; leave it out"):
        plan_student(teacher.config, from_=str(tmp_path), freeze_positions=True)
    plan_student(tiny_bert().config, freeze_positions=True)


@pytest.mark.parametrize("layer", [0, 1])
def test_queries_and_keys_are_those_of_attention(layer):
    """Layer 0 is global, layer 1 local; the windows are no part of the scores."""
    model, ids, mask = tiny_modernbert(2), tokens(), padding_mask()
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        sites = [Site(name, layer) for name in ("query", "key", "value")]
        _, states = run_encoder(model, ids, mask, sites=sites)
        wanted = eager(ids, attention_mask=mask, output_attentions=True).attentions[layer]
    query, key, value = (states[site].unflatten(-1, (4, 8)).transpose(1, 2) for site in sites)
    seen = make_attention_mask(model, mask, ids)[model.config.layer_types[layer]]
    scores = (query @ key.transpose(-1, -2) / 8**0.5).masked_fill(~seen, torch.finfo(torch.float32).min)
    real = mask[:, None, :, None]
    torch.testing.assert_close(scores.softmax(-1) * real, wanted * real, rtol=1e-4, atol=1e-6)
    block = model.model.layers[layer]
    inputs = []
    block.attn.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    run_encoder(model, ids, mask)
    expected = torch.nn.functional.linear(inputs[0], block.attn.Wqkv.weight[64:])
    torch.testing.assert_close(value.transpose(1, 2).flatten(2), expected)


@pytest.mark.parametrize("heads", [2, 4, 8, 16])
@pytest.mark.parametrize("kind", [GLOBAL, LOCAL])
def test_relations_depend_on_distances_alone(heads, kind):
    """The first layer's queries are those of the tokens, so the same text three tokens later has the same relations."""
    model, ids = one_layer(kind), tokens()
    later = torch.cat([tokens()[:, :3], ids], 1)
    with torch.no_grad():
        for name in ("query", "key"):
            vectors = []
            for each, start in ((ids, 0), (later, 3)):
                _, states = run_encoder(model, each, None, sites=[Site(name, 0)])
                vectors.append(states[Site(name, 0)][:, start:].unflatten(-1, (heads, -1)).transpose(1, 2))
            first, second = (x @ x.transpose(-1, -2) for x in vectors)
            torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)
            assert not torch.allclose(*vectors, atol=0.1), "positions turn them"


@pytest.mark.parametrize("checkpointing", [False, True])
def test_relations_and_attention_teach_a_copy_nothing_and_another_student_something(checkpointing):
    teacher, ids, mask = Teacher(tiny_modernbert(4)), tokens(), padding_mask()
    matches = [
        Match("relation", of=["query", "key", "value"], layers=[(1, 3)]),
        Match("relation", of="query_key", layers=[(1, 3)]),
        Match("attention", layers=[(0, 0), (1, 3)]),
    ]
    losses = Losses(kl=0.0, mlm=0.0, cosine=0.0, match=matches)
    labels, sums = torch.full_like(ids, -100), []
    for layers in ([0, 3], "random"):
        student = build_student(teacher.model, init_layers=layers, num_layers=2, dropout=0.0)
        if checkpointing:
            student.activation_checkpointing_enable()
        objective = Objective(student, losses, 1, teacher.config)
        targets = teacher.targets(ids, mask, sites=objective.teacher_sites)
        if layers == [0, 3]:
            # the states of the teacher's layer 0 are those of a copy; those of layer 3 are not, as its input differs
            attention = objective.matches["attention"]
            attention.pairs, attention.heads = attention.pairs[:1], attention.heads[:1]
            attention.sites = attention.sites[:2]
        loss, found = objective(ids, mask, labels, (int(mask.sum()), 1), targets)
        loss.backward()
        sums.append(found)
    assert sums[0][2] < 1e-6 and sums[1].min() > 1e-3 and sums[0][:2].min() > 1e-3
    gradient = student.model.layers[1].attn.Wqkv.weight.grad
    assert all(part.abs().sum() > 0 for part in gradient.chunk(3))


def test_the_final_norm_learns_with_the_last_layer():
    def trained(model):
        return {name for name, p in model.named_parameters() if p.requires_grad}

    low = Losses(kl=0.0, mlm=0.0, cosine=0.0, match=[Match("mse", layers=[(0, 1)])])
    objective = Objective(build_student(tiny_modernbert(4), num_layers=3), low, 1, tiny_modernbert(4).config)
    assert "model.final_norm.weight" not in trained(objective.model), "no term reaches it"
    student = build_student(tiny_modernbert(4), num_layers=3)
    freeze_all_but(student, [2], 2, "stages[0]", head=False)
    assert "model.final_norm.weight" in trained(student)
    freeze_all_but(student, [1], 2, "stages[0]", head=False)
    assert "model.final_norm.weight" not in trained(student)


def windowed_kernel(query, key, value, starts, keys, longest, longest_key, *, window_size=(-1, -1)):
    """Compute torch.nn.attention.varlen.varlen_attn by its definition."""
    left, right = window_size
    out = torch.zeros_like(query)
    for begin, end in zip(starts.tolist(), starts.tolist()[1:], strict=False):
        if end > begin:
            distance = torch.arange(end - begin)[None] - torch.arange(end - begin)[:, None]
            seen = ((left < 0) | (distance >= -left)) & ((right < 0) | (distance <= right))
            part = [x[begin:end].transpose(0, 1) for x in (query, key, value)]
            out[begin:end] = torch.nn.functional.scaled_dot_product_attention(*part, seen).transpose(0, 1)
    return out


def test_varlen_attention_keeps_to_the_windows(monkeypatch):
    monkeypatch.setattr(varlen_attention, "varlen_attn", windowed_kernel)
    ids, starts = tokens(), torch.from_numpy(compute_cu_seqlens(DOCUMENTS.numpy()))
    teacher = tiny_modernbert(4)
    for model in (teacher, build_student(teacher, init_layers=[0, 1, 2, 3], dropout=0.0)):
        with torch.no_grad():
            expected = run_encoder(model, ids, document_mask())[0]
            varlen_attention.use_varlen_attention(model)
            nonsense = torch.ones_like(document_mask())  # the mask must not be read
            actual = run_encoder(model, ids, nonsense, starts)[0]
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
            monkeypatch.setattr(varlen_attention, "varlen_attn", lambda *args, window_size=None: windowed_kernel(*args))
            assert not torch.allclose(run_encoder(model, ids, nonsense, starts)[0], expected, atol=1e-2)
            monkeypatch.setattr(varlen_attention, "varlen_attn", windowed_kernel)


def test_a_kernel_without_windows_is_not_used(monkeypatch):
    monkeypatch.setattr(varlen_attention, "varlen_attn", lambda query, key, value: query)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    windows = get_family(tiny_modernbert(2)).windows(tiny_modernbert(2).config)
    assert windows == [None, WINDOW] and get_family(tiny_bert(2)).windows(tiny_bert(2).config) == [None, None]
    ask = (torch.device("cuda"), torch.bfloat16, 64)
    assert "no window" in varlen_attention.varlen_unavailable_reason(*ask, windows=windows)
    assert varlen_attention.varlen_unavailable_reason(*ask, windows=[None, None]) is None
    monkeypatch.setattr(varlen_attention, "varlen_attn", windowed_kernel)
    assert varlen_attention.varlen_unavailable_reason(*ask, windows=windows) is None


@pytest.mark.parametrize("length", [3, 12, 24])
def test_operations_count_what_the_layers_see(length):
    config = tiny_modernbert(4).config
    encoder, head = linear_shapes(config)
    # Wqkv, Wo, both halves of Wi, Wo; the head's dense and the decoder
    assert encoder == {(32, 96): 8, (32, 32): 4, (48, 32): 4} and head == {(32, 32): 1, (32, 101): 1}
    products = 4 * (32 * 96 + 32 * 32 + 32 * 96 + 48 * 32)
    seen = make_attention_mask(tiny_modernbert(4), torch.ones(1, length, dtype=torch.bool), tokens(1, length))
    pairs = sum(int(seen[kind].sum()) for kind in config.layer_types)
    assert forward_flops_per_token(config, length, 0.0) == pytest.approx(2 * (products + 2 * 32 * pairs / length))


def test_the_states_of_a_student_are_those_behind_the_final_norm():
    model = randomised(tiny_modernbert(2))
    with torch.no_grad():
        _, states = run_encoder(model, tokens(), None, sites=[LAST_HIDDEN, Site("hidden", 0)])
        inner = model.model.layers[1]
        hidden = states[Site("hidden", 0)]
        mask = make_attention_mask(model, None, tokens())[LOCAL]
        output = inner(hidden, mask, **get_family(model).layer_inputs(model.model, inner, hidden))
    torch.testing.assert_close(states[LAST_HIDDEN], model.model.final_norm(output))


@pytest.mark.long
def test_sequences_of_8192_tokens_keep_their_documents_apart():
    """The hidden states of a document are those of the document alone, at its positions."""
    model = tiny_modernbert(2, max_position_embeddings=8192, layer_types=[GLOBAL, LOCAL])
    ids = torch.randint(5, 100, (1, 8192), generator=torch.Generator().manual_seed(0))
    first = torch.arange(8192) < 5000
    with torch.no_grad():
        whole, _ = run_encoder(model, ids, (first[:, None] == first[None])[None, None])
        alone, _ = run_encoder(model, ids[:, :5000], None)
    torch.testing.assert_close(whole[:, :5000], alone, rtol=1e-4, atol=1e-4)
