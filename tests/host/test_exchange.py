"""Concepts from and for other programs, on the real host."""

import os
import types

import folder_paths
import pytest
import torch
from comfyui_perfusion.nodes import exchange
from comfyui_perfusion.nodes.covariance import PerfusionImportCovariance
from comfyui_perfusion.nodes.exchange import PerfusionExportLoRA, PerfusionImportConcept, lora_tensors
from comfyui_perfusion.nodes.host.files import COVARIANCES, IMPORTS, concept_names, foreign_names, path_to_save
from comfyui_perfusion.nodes.host.model import apply_to_model, cross_attentions
from comfyui_perfusion.nodes.host.text import apply_to_clip
from comfyui_perfusion.nodes.host.uses import ConceptUse
from comfyui_perfusion.nodes.train import PerfusionTrainConcept
from comfyui_perfusion.perfusion_core import ConceptSet
from safetensors.torch import load_file

import nodes as host_nodes
from makers import covariance_inverse, make_concept, train_node
from test_model import encode, record, sample

PROMPT, TRIGGER_AT = "a photo of a <my-toy>", 5
OPEN = {"beta": 0.0, "temperature": 0.01}  # a gate that is open at the trigger


@pytest.fixture
def home(tmp_path, model_folder, monkeypatch):
    """Empty models/loras and models/embeddings, and the place where they are; leaks are measured on few captions."""
    monkeypatch.setattr(exchange, "CAPTIONS", 2)
    for name in ("loras", "embeddings"):
        (tmp_path / name).mkdir()
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name, ([str(tmp_path / name)], {".safetensors"}))
    return tmp_path


def files(home) -> list[str]:
    found = (path.relative_to(home).as_posix() for name in ("loras", "embeddings") for path in (home / name).rglob("*"))
    return sorted(found)


def foreign(model, clip, path) -> dict:
    """Writes what perfusion-pytorch saves for a concept of this model, with random outputs."""
    concept = make_concept(model, clip)
    generator = torch.Generator().manual_seed(5)
    held = {
        "embed_params": next(iter(concept.token_embeddings.values()))[None],
        "key_value_params": [
            [concept.target_input[None].clone(), torch.randn(1, module.to_v.out_features, generator=generator)]
            for module in cross_attentions(model).values()
            for _ in range(2)
        ],
        "C_inv": covariance_inverse(model, clip).float(),
    }
    path.parent.mkdir(exist_ok=True)
    torch.save(held, path)
    return held


def at_trigger(seen, forwards) -> dict:
    """{(layer, projection): (d_out,)} of the positive prompt at the trigger."""
    ((_, chunks),) = forwards
    row = chunks.index(0)
    return {place: output[row, TRIGGER_AT].float() for place, output in seen.items()}


# Import


def test_an_imported_concept_brings_its_outputs_to_the_models_layers_in_order(models, model_folder):
    model, clip, _ = models("sd1")
    held = foreign(model, clip, model_folder / IMPORTS / "toy.pt")
    assert foreign_names(IMPORTS) == ["toy.pt"]
    ((use,),) = PerfusionImportConcept.execute(model, "toy.pt", " <my-toy> ", "teddy").args
    assert (use.beta, use.temperature) == (0.7, 0.15)  # as there
    use = use.replace(**OPEN)
    model, clip = apply_to_model(model, [use]), apply_to_clip(clip, [use])
    found = at_trigger(*record(model, encode(clip, PROMPT), encode(clip, "blurry")))
    for number, layer in enumerate(cross_attentions(model)):
        for offset, projection in enumerate(("to_k", "to_v")):
            (expected,) = held["key_value_params"][2 * number + offset][1]
            torch.testing.assert_close(found[layer, projection], expected, rtol=2e-2, atol=2e-2)
    assert sample(model, encode(clip, PROMPT), encode(clip, "blurry")).isfinite().all()


def test_a_concept_of_another_family_is_refused_with_what_it_has(models, model_folder):
    foreign(*models("sd1")[:2], model_folder / IMPORTS / "toy.pt")
    with pytest.raises(ValueError, match=r"toy\.pt holds outputs for .*Connect a MODEL of the family"):
        PerfusionImportConcept.execute(models("sdxl")[0], "toy.pt", "<my-toy>", "teddy")


def test_a_trigger_without_its_superclass_is_refused(models, model_folder):
    foreign(*models("sd1")[:2], model_folder / IMPORTS / "toy.pt")
    for trigger, superclass, message in (
        ("<a>, <b>", "teddy", "2 triggers and 1 superclasses"),
        ("<a>, <b>", "teddy, cup", "holds 1 concepts"),
        ("my toy", "teddy", "contains a space"),
        ("<a>", "", "has no superclass"),
    ):
        with pytest.raises(ValueError, match=message):
            PerfusionImportConcept.execute(models("sd1")[0], "toy.pt", trigger, superclass)


def test_imports_are_no_concepts_and_no_concept_is_saved_among_them(model_folder):
    (model_folder / IMPORTS).mkdir()
    (model_folder / IMPORTS / "x.safetensors").write_bytes(b"")
    assert concept_names() == foreign_names(IMPORTS) == []
    with pytest.raises(ValueError, match="other files than concepts"):
        path_to_save("import/x", overwrite=False)


@pytest.mark.parametrize("node", [PerfusionImportConcept, PerfusionImportCovariance])
@pytest.mark.parametrize("name", ["../x.pt", "{}", "a/../../x.pt", "..\\x.pt", "x\0.pt", "", "x.txt", "a"])
def test_only_files_of_the_right_kind_in_the_folder_are_read(model_folder, node, name):
    for folder in (COVARIANCES, IMPORTS):
        (model_folder / folder / "a").mkdir(parents=True)
        (model_folder / folder / "x.txt").write_bytes(b"")
    torch.save(torch.eye(3), model_folder / "x.pt")
    with pytest.raises(ValueError, match=r"There is no file .* in models/perfusion/"):
        node.fingerprint_inputs(name.format(model_folder / "x.pt"))


@pytest.mark.parametrize("chosen", ["toys/toy.pt", None], ids=["chosen", "linked, not known yet"])
@pytest.mark.parametrize(
    ("node", "folder"), [(PerfusionImportConcept, IMPORTS), (PerfusionImportCovariance, COVARIANCES)]
)
def test_a_file_that_changed_is_read_again(model_folder, node, folder, chosen):
    path = model_folder / folder / "toys" / "toy.pt"
    path.parent.mkdir(parents=True)
    torch.save(1, path)
    before = node.fingerprint_inputs(chosen)
    assert node.fingerprint_inputs(chosen) == before
    torch.save(torch.ones(9), path)
    assert node.fingerprint_inputs(chosen) != before


# Export


def export(model, clip, use, name: str = "my-toy", overwrite: bool = False) -> str:
    return PerfusionExportLoRA.execute(model, clip, (use,), name, overwrite).args[0]


@pytest.mark.parametrize(
    ("kind", "name", "widths"),
    [
        ("sd1", "down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", {"emb_params": (1, 768)}),
        ("sdxl", "input_blocks_4_1_transformer_blocks_1_attn2_to_v", {"clip_l": (1, 768), "clip_g": (1, 1280)}),
    ],
)
def test_stock_nodes_get_the_keys_and_values_of_the_open_gate_at_the_trigger(models, home, kind, name, widths, caplog):
    model, clip, _ = models(kind)
    use = ConceptUse(make_concept(model, clip), **OPEN)
    ours = apply_to_model(model, [use]), apply_to_clip(clip, [use])
    report = export(*ours, use, "toys/my-toy")  # from the patched MODEL: the edit must not be in it twice
    assert "embedding:toys/my-toy " in report
    lora, embedding = (load_file(home / folder / "toys/my-toy.safetensors") for folder in ("loras", "embeddings"))
    assert lora[f"lora_unet_{name}.lora_down.weight"].shape == (1, use.concept.dim)  # as other programs know it
    assert {key: tuple(tensor.shape) for key, tensor in embedding.items()} == widths
    assert min(tensor.abs().max() for key, tensor in lora.items() if "lora_up" in key) > 0.1

    stock, _ = host_nodes.LoraLoader().load_lora(model, clip, "toys/my-toy.safetensors", 1.0, 0.0)
    plain_clip = clip.clone()
    plain_clip.tokenizer = type(clip.tokenizer)(embedding_directory=str(home / "embeddings"))
    expected, found = encode(ours[1], PROMPT), encode(plain_clip, "a photo of a embedding:toys/my-toy")
    torch.testing.assert_close(found[0][0], expected[0][0])
    expected = at_trigger(*record(ours[0], expected, encode(clip, "")))
    found = at_trigger(*record(stock, found, encode(clip, "")))
    for place, output in expected.items():
        torch.testing.assert_close(found[place], output, rtol=2e-3, atol=2e-3)
    assert "not loaded" not in caplog.text and "does not exist" not in caplog.text


def test_an_update_is_for_the_model_with_its_loras_and_at_the_uses_strengths(models, home):
    model, clip, _ = models("sd1")
    use = ConceptUse(make_concept(model, clip))
    first, *_ = cross_attentions(model)
    key = f"diffusion_model.{first}.to_v.weight"
    weight = model.model.state_dict()[key].float()
    patched = model.clone()
    patched.add_patches({key: ("diff", (weight,))})  # twice the weight
    plain, doubled, half = (
        lora_tensors(*pair)
        for pair in ((model, use), (patched, use), (model, use.replace(strength=0.5, down=0.5, up=0)))
    )
    name = next(name for name in plain if "down_blocks_0" in name and name.endswith("to_v.lora_up.weight"))
    moved = plain[name][:, 0] - use.concept.value_deltas[first]
    torch.testing.assert_close(doubled[name] - plain[name], moved[:, None], rtol=1e-2, atol=1e-2)
    assert all(torch.equal(doubled[other], plain[other]) for other in plain if other != name)
    torch.testing.assert_close(half[name], 0.25 * plain[name])
    assert all(not half[other].any() for other in half if "up_blocks" in other and "lora_up" in other)


def test_the_report_gives_the_shares_with_and_without_the_gate(models, home):
    model, clip, _ = models("sd1")
    concept = make_concept(model, clip)
    report = export(model, clip, ConceptUse(concept, 0.6, 0.2))
    taught = apply_to_clip(clip, [ConceptUse(concept)])
    for text in (concept.trigger, concept.superclass):
        encoding = taught.encode_from_tokens(taught.tokenize(f"a photo of a {text}")).float()
        gate = ConceptSet([concept], 0.6, 0.2).gates(encoding)[0, TRIGGER_AT, 0]
        share = encoding[0, TRIGGER_AT] @ concept.target_dual / (concept.target_input @ concept.target_dual)
        assert f"{text}: {share:.2f} / {gate:.2f}\n" in report
    assert "A LoRA has no gate" in report and "words of captions: " in report


def test_a_pair_has_one_name_though_only_one_of_the_two_was_taken(models, home):
    model, clip, _ = models("sd1")
    use = ConceptUse(make_concept(model, clip))
    (home / "embeddings/my-toy.safetensors").write_bytes(b"another")
    assert "embedding:my-toy-2 " in export(model, clip, use)
    assert files(home) == [
        "embeddings/my-toy-2.safetensors", "embeddings/my-toy.safetensors", "loras/my-toy-2.safetensors",
    ]  # fmt: skip
    export(model, clip, use, overwrite=True)
    assert (home / "embeddings/my-toy.safetensors").read_bytes() != b"another"


def test_a_pair_without_a_name_is_called_as_its_trigger(models, home):
    model, clip, _ = models("sd1")
    export(model, clip, ConceptUse(make_concept(model, clip)), " ")
    assert files(home) == ["embeddings/my-toy.safetensors", "loras/my-toy.safetensors"]


@pytest.mark.parametrize("writes", [0, 1])
def test_a_full_disk_leaves_both_files_as_they_were(models, home, monkeypatch, writes):
    model, clip, _ = models("sd1")
    use = ConceptUse(make_concept(model, clip))
    (home / "loras/my-toy.safetensors").write_bytes(b"another")
    done = []

    def fill(_):
        done.append(1)
        if len(done) > writes:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fill)
    with pytest.raises(RuntimeError, match=r"No space left.*Make room"):
        export(model, clip, use, overwrite=True)
    assert files(home) == ["loras/my-toy.safetensors"]
    assert (home / "loras/my-toy.safetensors").read_bytes() == b"another"


@pytest.mark.parametrize(
    "name", ["..", "../x", "/tmp/x", "a/../../x", "x\0y", "my toy", "(x)", "a:b", "a,b", "a\\..\\..\\b", "x" * 300]
)
def test_names_that_cannot_be_are_refused_before_anything_is_written(models, home, name):
    model, clip, _ = models("sd1")
    with pytest.raises(ValueError, match=r"Use letters|Choose another name"):
        export(model, clip, ConceptUse(make_concept(model, clip)), name)
    assert files(home) == []


def test_what_cannot_be_exported_is_refused(models, home, monkeypatch):
    model, clip, _ = models("sd1")
    use = ConceptUse(make_concept(model, clip))
    with pytest.raises(ValueError, match="connect them one by one"):
        PerfusionExportLoRA.execute(model, clip, (use, use), "x", False)
    with pytest.raises(ValueError, match="trained for sd1"):
        export(models("sdxl")[0], clip, use)
    with pytest.raises(ValueError, match="Connect the CLIP of a sd1 checkpoint"):
        export(model, models("sdxl")[1], use)
    layer, module = next(iter(cross_attentions(model).items()))
    for unusable in (torch.full_like(module.to_k.weight, torch.nan), module.to_k.weight.to("meta")):
        with monkeypatch.context() as patch:
            patch.setitem(module.to_k._parameters, "weight", torch.nn.Parameter(unusable, requires_grad=False))
            with pytest.raises(ValueError, match=rf"weights of this model cannot be used: {layer}\.to_k"):
                export(model, clip, use)
    assert files(home) == []


# Covariance


@pytest.fixture
def outside_a_graph(monkeypatch):
    monkeypatch.setattr(PerfusionTrainConcept, "hidden", types.SimpleNamespace(unique_id=None))


@pytest.mark.usefixtures("outside_a_graph")
def test_an_imported_covariance_trains_and_is_named_in_the_concept(models, model_folder):
    model, clip, _ = models("sd1")
    (model_folder / COVARIANCES).mkdir()
    torch.save({"C_inv": covariance_inverse(model, clip)}, model_folder / COVARIANCES / "mine.pt")
    covariance, spectrum = PerfusionImportCovariance.execute("mine.pt", "covariance", 0.02).args
    assert covariance.ridge == 0.02 and spectrum.shape[-1] == 3
    ((use,), *_) = train_node(models, covariance=[covariance]).args
    assert use.concept.metadata["covariance"] == "mine.pt, ridge 0.02"
    expected = covariance.inverse() @ use.concept.target_input.double()
    torch.testing.assert_close(use.concept.target_dual.double(), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.usefixtures("outside_a_graph")
def test_an_imported_covariance_that_a_training_could_not_use_is_refused_at_once(models, model_folder):
    (model_folder / COVARIANCES).mkdir()
    torch.save(torch.diag(torch.tensor([1.0, 0.0, 2.0])), model_folder / COVARIANCES / "flat.pt")
    with pytest.raises(ValueError, match=r"flat\.pt cannot be inverted with a ridge of 0"):
        PerfusionImportCovariance.execute("flat.pt", "covariance", 0.0)
    covariance, _ = PerfusionImportCovariance.execute("flat.pt", "covariance", 0.01).args
    with pytest.raises(ValueError, match="covariance is 3 wide, this model's text encoding 768"):
        train_node(models, covariance=[covariance])
