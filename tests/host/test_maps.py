"""What concepts do, shown."""

import pytest
import torch
from comfyui_perfusion.nodes.host.text import apply_to_clip, token_labels
from comfyui_perfusion.nodes.host.uses import ConceptUse
from comfyui_perfusion.nodes.maps import PerfusionGateMap
from comfyui_perfusion.perfusion_core import ConceptSet

from makers import make_concept


@pytest.fixture(params=["sd1", "sdxl"])
def known(models, request):
    """A CLIP that knows two concepts, and these."""
    model, clip, _ = models(request.param)
    toy, cup = make_concept(model, clip, "<my-toy>", "teddy", 1), make_concept(model, clip, "<My-Cup>", "cup", 2)
    return apply_to_clip(clip, [ConceptUse(toy, 0.6, 0.15), ConceptUse(cup, 0.7, 0.1)]), toy, cup


def test_tokens_are_named_without_the_padding_in_every_part_of_a_long_prompt(known):
    clip, _, _ = known
    labels = token_labels(clip, clip.tokenize("a photo of <MY-TOY>, (unbelievable:1.2)"))
    assert labels == list(enumerate(["start", "a", "photo", "of", "<my-toy>", ",", "unbelievable", "end"]))
    labels = token_labels(clip, clip.tokenize(" ".join(["red"] * 80) + " <my-cup>"))
    assert [word for _, word in labels] == ["start", *["red"] * 75, "end", "start", *["red"] * 5, "<my-cup>", "end"]
    assert labels[77] == (77, "start") and labels[83] == (83, "<my-cup>")


def test_the_report_names_the_words_each_concept_acts_on_by_its_gate(known):
    clip, toy, cup = known
    prompt = "a photo of a <my-toy>"
    image, report = PerfusionGateMap.execute(clip, prompt).args
    encoding = clip.encode_from_tokens(clip.tokenize(prompt)).float()
    gates = ConceptSet([toy, cup], [0.6, 0.7], [0.15, 0.1]).gates(encoding)[0, 5]  # at the trigger
    first, second = report.splitlines()
    assert f"<my-toy> {gates[0]:.2f}" in first and "not in the prompt" not in first
    assert second.startswith("<My-Cup> acts on ") and second.endswith("Its trigger is not in the prompt.")
    assert image.shape[0] == 1 and image.shape[3] == 3 and image.std() > 0.05


def test_a_clip_without_concepts_is_an_error_that_says_what_to_connect(models):
    with pytest.raises(ValueError, match="Connect the CLIP output of Perfusion Loader"):
        PerfusionGateMap.execute(models("sd1")[1], "a photo")


def test_the_map_leaves_the_text_encoder_as_it_was(known):
    clip, _, _ = known
    before = clip.encode_from_tokens(clip.tokenize("a photo of a <my-toy>"))
    PerfusionGateMap.execute(clip, "a photo of a <my-toy>")
    assert torch.equal(clip.encode_from_tokens(clip.tokenize("a photo of a <my-toy>")), before)
