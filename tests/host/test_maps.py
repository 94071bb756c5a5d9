"""What concepts do, shown."""

import sys
import types

import folder_paths
import pytest
import torch
from comfyui_perfusion.nodes.host.progress import Progress
from comfyui_perfusion.nodes.host.text import apply_to_clip, token_labels
from comfyui_perfusion.nodes.host.uses import ConceptUse
from comfyui_perfusion.nodes.maps import PerfusionGateMap
from comfyui_perfusion.perfusion_core import ConceptSet

from makers import make_concept


@pytest.fixture(autouse=True)
def _own_temp(monkeypatch, tmp_path):
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))


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
    assert image.shape[0] == 1 and image.shape[2:] == (640, 3) and image.std() > 0.05


def test_the_map_is_on_the_node_and_grows_down_with_the_prompt(known):
    short, long = (PerfusionGateMap.execute(known[0], "a photo of a <my-toy>" + more) for more in ("", " on snow" * 20))
    assert len(short.ui["images"]) == 1 and short.ui["text"] == (short.args[1],)
    assert long.args[0].shape[1] > 2 * short.args[0].shape[1] and long.args[0].shape[2] == short.args[0].shape[2]


def test_a_trigger_in_a_line_of_progress_is_no_tag(monkeypatch):
    """The page shows these lines as HTML."""
    sent = []
    server = types.SimpleNamespace(send_progress_text=lambda text, node_id: sent.append(text))
    module = types.SimpleNamespace(PromptServer=types.SimpleNamespace(instance=server))
    monkeypatch.setitem(sys.modules, "server", module)
    Progress(1, "7", bar=False).update(1, "<my-toy> & more")
    assert sent == ["&lt;my-toy&gt; &amp; more"]


def test_a_clip_without_concepts_is_an_error_that_says_what_to_connect(models):
    with pytest.raises(ValueError, match="Connect the CLIP output of Perfusion Loader"):
        PerfusionGateMap.execute(models("sd1")[1], "a photo")


def test_the_map_leaves_the_text_encoder_as_it_was(known):
    clip, _, _ = known
    before = clip.encode_from_tokens(clip.tokenize("a photo of a <my-toy>"))
    PerfusionGateMap.execute(clip, "a photo of a <my-toy>")
    assert torch.equal(clip.encode_from_tokens(clip.tokenize("a photo of a <my-toy>")), before)
