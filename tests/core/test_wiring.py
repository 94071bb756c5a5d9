"""The wiring brings the edit into a model, and takes it out again without a trace."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from perfusion_core import Concept, ConceptSet, Values, ValueWiring, Wiring, cross_attention_layers

from . import reference
from .makers import make_concept, make_covariance, same_bits
from .tiny import DIM, WIDTHS, Net, make_net

LAYERS = {f"blocks.{number}.attn2": width for number, width in enumerate(WIDTHS)}
SETTINGS = {"betas": 0.6, "temperatures": 0.2}


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


COVARIANCE = make_covariance(DIM, torch.Generator().manual_seed(0))
LATENT, CONTEXT = normal(1, 2, 4, 3, 3), normal(2, 2, 5, DIM)


def concept(seed: int, free_keys: bool = False) -> Concept:
    random = torch.Generator().manual_seed(seed)
    sound = make_concept(COVARIANCE, normal(seed, DIM), normal(seed + 1, DIM), random, f"concept{seed}")
    deltas = {layer: normal(seed + number, width) for number, (layer, width) in enumerate(LAYERS.items())}
    keys = {layer: normal(seed + 9, width) for layer, width in LAYERS.items()} if free_keys else None
    return sound.replace(value_deltas=deltas, key_outputs=keys)


def wired(net: nn.Module, *concepts: Concept) -> Wiring:
    return Wiring(net, cross_attention_layers(net), ConceptSet(concepts, **SETTINGS) if concepts else None)


@pytest.fixture
def net() -> Iterator[Net]:
    """A model that must be as it was when the test ends."""
    net = make_net()
    parameters = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    attributes = {name: dict(module.__dict__) for name, module in net.named_modules()}
    output = net(LATENT, CONTEXT)
    yield net
    assert {name: module.__dict__ for name, module in net.named_modules()} == attributes
    assert all(same_bits(tensor, parameters[name]) for name, tensor in net.state_dict().items())
    assert same_bits(net(LATENT, CONTEXT), output)


def test_layers_are_found_by_their_names(net: Net) -> None:
    assert cross_attention_layers(net) == {layer: (f"{layer}.to_k", f"{layer}.to_v") for layer in LAYERS}
    attention = nn.Module()
    attention.attn2 = net.blocks[0].attn2
    attention.no_attn2 = net.blocks[1].attn2
    assert list(cross_attention_layers(attention)) == ["attn2"]
    assert cross_attention_layers(net, ".attn1") == {}


@pytest.mark.parametrize("free_keys", [False, True])
def test_each_layer_computes_the_papers_keys_and_values(net: Net, free_keys: bool) -> None:
    """Also with a bias, which the edit leaves alone."""
    taught = [concept(10, free_keys), concept(20, free_keys)]
    with wired(net, *taught):
        found = {
            f"{layer}.{name}": getattr(net.get_submodule(layer), name)(CONTEXT)
            for layer in LAYERS
            for name in ("to_k", "to_v")
        }
    for name, actual in found.items():
        layer, _, projection = name.rpartition(".")
        module = net.get_submodule(name)
        outputs = [module.weight @ c.superclass_input for c in taught]
        if projection == "to_v":
            outputs = [output + c.value_deltas[layer] for output, c in zip(outputs, taught, strict=True)]
        elif free_keys:
            outputs = [c.key_outputs[layer] for c in taught]
        targets, settings = [c.target_input for c in taught], ([0.6] * 2, [0.2] * 2)
        for batch in range(2):
            for token in range(5):
                e = CONTEXT[batch, token]
                h = reference.several_concepts(module.weight, e, COVARIANCE, targets, outputs, *settings)
                expected = h if module.bias is None else h + module.bias
                torch.testing.assert_close(actual[batch, token], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("freedom", [0.0, 0.3])
@pytest.mark.parametrize("prepared", [False, True])
def test_one_projection_gives_the_keys_and_values_of_two(net: Net, prepared: bool, freedom: float) -> None:
    layer, taught = "blocks.1.attn2", concept(10).replace(key_freedom=freedom)
    attention, other = net.get_submodule(layer), CONTEXT * 0.9
    fused, found = nn.Linear(DIM, 2 * LAYERS[layer], dtype=torch.float64), []
    for name, parameter in fused.named_parameters():
        parameter.data = torch.cat([getattr(attention.to_k, name), getattr(attention.to_v, name)])
    for model, names in ((net, (f"{layer}.to_k", f"{layer}.to_v")), (nn.ModuleDict({"to_kv": fused}), ("to_kv",) * 2)):
        with Wiring(model, {layer: names}, ConceptSet([taught], **SETTINGS)) as wiring:
            assert wiring.widths == {layer: LAYERS[layer]}
            if prepared:
                wiring.prepare(CONTEXT, key_encoding=other)
            found.append([module(CONTEXT) for module in dict.fromkeys(wiring.projections[layer])])
    torch.testing.assert_close(found[1][0], torch.cat(found[0], -1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("prepared", [False, True])
def test_a_wired_model_gives_another_picture_and_then_its_own_again(net: Net, prepared: bool) -> None:
    plain = net(LATENT, CONTEXT)
    with wired(net, concept(10)) as wiring:
        if prepared:
            wiring.prepare(CONTEXT)
        assert not torch.allclose(net(LATENT, CONTEXT), plain)
    assert same_bits(net(LATENT, CONTEXT), plain)


def test_an_exception_inside_leaves_the_model_as_it_was(net: Net) -> None:
    with pytest.raises(ZeroDivisionError), wired(net, concept(10)):
        net(LATENT, CONTEXT)
        raise ZeroDivisionError


def test_an_exception_in_a_layer_leaves_the_model_as_it_was(net: Net) -> None:
    with pytest.raises(KeyError), wired(net, concept(10).replace(value_deltas={"elsewhere": torch.ones(3)})):
        net(LATENT, CONTEXT)


def test_a_forward_of_someone_elses_is_kept_and_used(net: Net) -> None:
    """As other extensions put it there: on the instance."""
    to_v = net.blocks[0].attn2.to_v
    plain = to_v.forward
    to_v.forward = foreign = lambda x: 2 * plain(x)
    wiring = wired(net, concept(10))
    with wiring:
        edited = to_v(CONTEXT)
    assert to_v.__dict__["forward"] is foreign
    del to_v.forward
    gates = wiring.concepts.gates(CONTEXT)
    expected = wiring.concepts.edit_value(2 * plain(wiring.concepts.edit_input(CONTEXT)), gates, "blocks.0.attn2")
    torch.testing.assert_close(edited, expected)


def test_an_open_wiring_is_not_opened_again(net: Net) -> None:
    wiring = wired(net, concept(3))
    assert not wiring.is_open
    with wiring, pytest.raises(RuntimeError, match="already open"), wiring:
        pytest.fail("it would edit twice")
    assert not wiring.is_open


def test_a_wiring_can_be_entered_again(net: Net) -> None:
    wiring = wired(net, concept(10))
    with wiring:
        first = net(LATENT, CONTEXT)
    with wiring:
        assert same_bits(net(LATENT, CONTEXT), first)


def test_without_concepts_or_at_strength_zero_the_model_is_untouched(net: Net) -> None:
    plain = net(LATENT, CONTEXT)
    with wired(net) as wiring:
        wiring.prepare(CONTEXT)
        assert same_bits(net(LATENT, CONTEXT), plain)
        wiring.concepts = ConceptSet([concept(10)], strengths=0)
        assert same_bits(net(LATENT, CONTEXT), plain)
        wiring.prepare(CONTEXT)
        assert same_bits(net(LATENT, CONTEXT), plain)


@pytest.mark.parametrize(("prepared", "computed"), [(True, 1), (False, 2 * len(LAYERS))])
def test_preparing_edits_once_for_all_layers(
    net: Net, monkeypatch: pytest.MonkeyPatch, prepared: bool, computed: int
) -> None:
    calls = []
    edit_input = ConceptSet.edit_input

    def counted(self: ConceptSet, encoding: Tensor, keys: bool = False, **more: object) -> Tensor:
        calls.append(keys)
        return edit_input(self, encoding, keys, **more)

    monkeypatch.setattr(ConceptSet, "edit_input", counted)
    with wired(net, concept(10)) as wiring:
        if prepared:
            wiring.prepare(CONTEXT)
        net(LATENT, CONTEXT)
    assert len(calls) == computed


def test_what_was_prepared_serves_only_its_own_tensor_and_concepts(net: Net) -> None:
    other = CONTEXT * 0.9
    with wired(net, concept(10)) as wiring:
        expected = net(LATENT, other)
        wiring.prepare(CONTEXT)
        assert same_bits(net(LATENT, other), expected)
    with wired(net, concept(20)):
        expected = net(LATENT, CONTEXT)
    with wired(net, concept(10)) as wiring:
        wiring.prepare(CONTEXT)
        wiring.concepts = ConceptSet([concept(20)], **SETTINGS)
        assert same_bits(net(LATENT, CONTEXT), expected)


def test_keys_may_see_another_encoding(net: Net) -> None:
    other = CONTEXT * 0.9
    with wired(net, concept(10)) as wiring:
        to_k, to_v = net.blocks[1].attn2.to_k, net.blocks[1].attn2.to_v
        key, value = to_k(other), to_v(CONTEXT)
        wiring.prepare(CONTEXT, key_encoding=other)
        assert same_bits(to_k(CONTEXT), key)
        assert same_bits(to_v(CONTEXT), value)


def gradients(checkpointing: str, prepared: bool) -> list[Tensor]:
    """Of the deltas, the context and the latent, through the whole net."""
    net = make_net(checkpointing=checkpointing)
    taught = concept(10)
    deltas = {layer: delta.clone().requires_grad_() for layer, delta in taught.value_deltas.items()}
    latent, context = LATENT.clone().requires_grad_(), CONTEXT.clone().requires_grad_()
    with wired(net, taught.replace(value_deltas=deltas)) as wiring:
        if prepared:
            wiring.prepare(context)
        net(latent, context).square().sum().backward()
    return [tensor.grad for tensor in (*deltas.values(), context, latent)]


@pytest.mark.parametrize(("checkpointing", "prepared"), [("new", False), ("new", True), ("reentrant", False)])
def test_checkpointing_leaves_the_gradients_as_they_are(checkpointing: str, prepared: bool) -> None:
    """Reentrant: its first forward runs without gradients, which must not stick to the second."""
    for actual, expected in zip(gradients(checkpointing, prepared), gradients("none", prepared), strict=True):
        assert actual is not None
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "missing"), [("blocks.9.attn2.to_k", "9"), ("blocks.0.attn2.to_x", "to_x")])
def test_a_projection_that_the_model_lacks_is_named(net: Net, name: str, missing: str) -> None:
    with pytest.raises(AttributeError, match=missing):
        Wiring(net, {"layer": (name, "blocks.0.attn2.to_v")})


class Joint(nn.Module):
    """Queries, keys and values of text and picture from one projection, the text's rows first."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.picture, self.qkv = nn.Linear(DIM, 8), nn.Linear(4, 8), nn.Linear(8, 8 + 2 * 6)

    def forward(self, latent: Tensor, encoding: Tensor) -> Tensor:
        sequence = torch.cat([self.text(encoding), self.picture(latent.flatten(2).mT)], 1)
        return self.qkv(sequence)


def test_values_of_the_texts_rows_alone_are_edited_in_joint_attention() -> None:
    torch.manual_seed(0)
    net, layer = Joint().double(), "joint"
    width, start = 6, 8 + 6
    first, second = (concept(seed).replace(value_deltas={layer: normal(seed + 5, width)}) for seed in (3, 9))
    concepts = ConceptSet([first, second], strengths=[1.0, 0.5], **SETTINGS)
    wiring = ValueWiring(net, {layer: Values("qkv", start, width)}, concepts)
    assert wiring.widths == {layer: width}
    plain = net(LATENT, CONTEXT)
    with wiring:
        assert same_bits(net(LATENT, CONTEXT), plain)  # of a text that it was not told of
        wiring.prepare(CONTEXT)
        edited = net(LATENT, CONTEXT)
        words = torch.zeros(CONTEXT.shape[:2], dtype=torch.bool)
        words[:, 1] = True
        wiring.prepare(CONTEXT, words=words)
        of_one_word = net(LATENT, CONTEXT)
        with pytest.raises(RuntimeError, match="already open"):
            wiring.__enter__()
    gates = concepts.gates(CONTEXT)
    added = gates[..., :1] * first.value_deltas[layer] + 0.5 * gates[..., 1:] * second.value_deltas[layer]
    wanted = plain.detach().clone()
    wanted[:, : CONTEXT.shape[1], start:] += added
    torch.testing.assert_close(edited, wanted, rtol=1e-12, atol=1e-12)
    untouched = torch.ones_like(plain, dtype=torch.bool)
    untouched[:, : CONTEXT.shape[1], start:] = False
    assert same_bits(edited[untouched], plain[untouched])
    assert same_bits(of_one_word[:, 2:], plain[:, 2:]) and same_bits(of_one_word[:, 1], edited[:, 1])
    assert same_bits(net(LATENT, CONTEXT), plain) and "forward" not in net.qkv.__dict__


def test_joint_attention_stays_as_it_is_without_concepts_that_act() -> None:
    torch.manual_seed(0)
    net = Joint().double()
    plain = net(LATENT, CONTEXT)
    known = concept(3).replace(value_deltas={"joint": normal(4, 6)})
    for concepts in (None, ConceptSet([known], strengths=[0.0], **SETTINGS)):
        with ValueWiring(net, {"joint": Values("qkv", 14, 6)}, concepts) as wiring:
            wiring.prepare(CONTEXT)
            assert same_bits(net(LATENT, CONTEXT), plain)


def test_gradients_reach_values_and_encoding_in_joint_attention() -> None:
    torch.manual_seed(0)
    net = Joint().double().requires_grad_(False)
    delta, encoding = normal(4, 6).requires_grad_(), CONTEXT.clone().requires_grad_()
    concepts = ConceptSet([concept(3).replace(value_deltas={"joint": delta})], **SETTINGS)
    with ValueWiring(net, {"joint": Values("qkv", 14, 6)}, concepts) as wiring:
        wiring.prepare(encoding)
        net(LATENT, encoding)[..., 14:].sum().backward()
    torch.testing.assert_close(delta.grad, concepts.gates(CONTEXT).sum().expand(6))
    assert encoding.grad.any()
