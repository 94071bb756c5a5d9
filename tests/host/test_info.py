"""What Perfusion Concept Info tells, shows and suggests, and thumbnails on their way into a file."""

import math

import pytest
import torch
from comfyui_perfusion.nodes.host import thumbnail
from comfyui_perfusion.nodes.host.uses import ConceptUse
from comfyui_perfusion.nodes.info import PerfusionConceptInfo, beta_range, suggested_beta
from comfyui_perfusion.nodes.load import PerfusionSaveConcept
from comfyui_perfusion.perfusion_core import Concept, ConceptSet, load_concept
from PIL import Image

METADATA = {
    "date": "2026-05-01",
    "steps": "400",
    "notes": "brown and soft",
    "covariance": "70686 encodings, ridge 0.01",
}


def concept(alike: float, **changes) -> Concept:
    """One whose superclass word stands at ``alike`` on the gate's scale; value deltas of lengths 2, 3 and 6."""
    axis = torch.eye(8)
    return Concept(
        "toy", "<my-toy>", "teddy", "sd1", {"l": axis[0]}, 2 * axis[0], axis[0] / 2, 2 * alike * axis[0] + axis[1],
        {"input_blocks.1.1.attn2": torch.full((4,), 1.0), "middle_block.1.attn2": 3 * axis[0],
         "output_blocks.5.1.attn2": 6 * axis[0]},
    ).replace(**changes)  # fmt: skip


def gates(toy: Concept, beta: float, temperature: float) -> tuple[float, float, float]:
    """On its own encoding, the superclass's and one that is orthogonal."""
    words = torch.stack([toy.target_input, toy.superclass_input, torch.eye(8)[7]])
    return tuple(ConceptSet([toy], beta, temperature).gates(words[None]).flatten().tolist())


@pytest.mark.parametrize("alike", [-0.5, 0.0, 0.3, 0.6, 0.75])
@pytest.mark.parametrize("temperature", [0.05, 0.1, 0.15])
def test_the_suggested_betas_keep_other_words_out_and_let_the_trigger_in(alike, temperature):
    toy = concept(alike)
    low, high = beta_range(toy, temperature)
    _, superclass, unrelated = gates(toy, low, temperature)
    assert unrelated == pytest.approx(0.05, abs=1e-4) or superclass == pytest.approx(0.5, abs=1e-4)
    assert unrelated <= 0.0501 and superclass <= 0.5001
    assert gates(toy, high, temperature)[0] == pytest.approx(0.8, abs=1e-4)
    assert low < high
    assert low - 0.005 <= suggested_beta(ConceptUse(toy, 0.2, temperature)) <= high + 0.005


def test_what_the_file_recommends_is_suggested_where_it_serves():
    advice = {"recommended_beta": "0.55", "recommended_temperature": "0.1", "recommended_key_lock": "0"}
    assert suggested_beta(ConceptUse(concept(0.2, metadata=advice), temperature=0.1)) == 0.55
    assert suggested_beta(ConceptUse(concept(0.7, metadata=advice), temperature=0.1)) == 0.7
    assert suggested_beta(ConceptUse(concept(0.2), temperature=0.1)) == 0.7


def test_the_report_says_what_is_in_the_file_and_how_far_its_gate_opens():
    report, picture, beta = PerfusionConceptInfo.execute((ConceptUse(concept(0.6, metadata=METADATA), 0.7, 0.1),)).args
    own, superclass, unrelated = (f"{gate:.1%}" for gate in gates(concept(0.6), 0.7, 0.1))
    assert (own, superclass, unrelated) == ("95.3%", "26.9%", "0.1%")
    for words in (
        "toy: <my-toy>, a teddy, for sd1",
        "Saved 2026-05-01 after 400 steps.",
        "Notes: brown and soft",
        "down 2.0, middle 3.0, up 6.0, most in output_blocks.5.1 6.0, middle_block.1 3.0",
        f"{own} open on <my-toy>, {superclass} on teddy and {unrelated} on unrelated words",
        "Suggested beta at this temperature: 0.70, from 0.60 to 0.86.",
    ):
        assert words in report
    assert beta == 0.7 and picture.shape == (1, 400, 720, 3)


def test_where_no_beta_serves_the_report_says_what_would():
    report, _, beta = PerfusionConceptInfo.execute((ConceptUse(concept(0.9), 0.7, 0.15),)).args
    assert "teddy, which is 0.90 like it" in report and "Lower the temperature to 0.07" in report
    low, high = beta_range(concept(0.9), 0.07)
    assert low < high and 0 <= beta <= 1
    report, _, _ = PerfusionConceptInfo.execute((ConceptUse(concept(1.0), 0.7, 0.15),)).args
    assert "Train it longer" in report
    report, _, _ = PerfusionConceptInfo.execute((ConceptUse(concept(0.0), 0.7, 0.5),)).args
    assert "Lower the temperature to 0.23" in report


def test_of_several_concepts_each_has_a_picture_and_the_highest_beta_counts():
    low, high = ConceptUse(concept(0.0), 0.7, 0.05), ConceptUse(concept(0.9), 0.7, 0.05)
    report, pictures, beta = PerfusionConceptInfo.execute((low, high)).args
    assert pictures.shape == (2, 400, 720, 3) and not torch.equal(pictures[0], pictures[1])
    assert beta == suggested_beta(high) == 0.9
    assert report.count("Suggested beta") == 2


def test_free_keys_and_missing_metadata_and_other_layers_are_told():
    toy = concept(0.2, value_deltas={"blocks.0.attn2": torch.ones(4)}, key_outputs={"blocks.0.attn2": torch.ones(4)})
    report, _, _ = PerfusionConceptInfo.execute((ConceptUse(toy),)).args
    assert "Keys are its own" in report and "Not saved yet." in report and "down 2.0" in report
    report, _, _ = PerfusionConceptInfo.execute((ConceptUse(concept(0.2, key_freedom=0.25)),)).args
    assert "Keys are 25% its own and 75% locked to the word" in report


@pytest.mark.parametrize("temperature", [0.01, 1.0])
@pytest.mark.parametrize("alike", [-30.0, 30.0])
def test_extremes_are_shown_too(alike, temperature):
    _, picture, beta = PerfusionConceptInfo.execute((ConceptUse(concept(alike), 0.0, temperature),)).args
    assert picture.isfinite().all() and 0 <= beta <= 1 and math.isfinite(beta)


def test_a_saved_picture_is_shown_again(model_folder):
    red = torch.tensor([1.0, 0.0, 0.0]).expand(2, 600, 400, 3).clone()
    red[1] = 0
    path = PerfusionSaveConcept.execute((ConceptUse(concept(0.3)),), "toy", False, thumbnail=red).args[0]
    saved = load_concept(path)
    assert thumbnail.decoded(saved.metadata)[8:12] == b"WEBP"
    plain, shown = (PerfusionConceptInfo.execute((ConceptUse(it),)).args[1] for it in (concept(0.3), saved))

    def reds(picture):
        return int(((picture - torch.tensor([1.0, 0.0, 0.0])).abs().amax(-1) < 0.05).sum())

    assert reds(shown) - reds(plain) > 10_000
    again = PerfusionSaveConcept.execute((ConceptUse(saved),), "again", False).args[0]
    assert load_concept(again).metadata[thumbnail.KEY] == saved.metadata[thumbnail.KEY]


def test_a_damaged_picture_is_left_out():
    toy = concept(0.3, metadata={thumbnail.KEY: thumbnail.encoded(Image.new("RGB", (64, 64)))[:60]})
    shown, plain = (PerfusionConceptInfo.execute((ConceptUse(it),)).args[1] for it in (toy, concept(0.3)))
    assert torch.equal(shown, plain)
