"""Concepts as values in the graph, against Perfusion Loaders in a row."""

import itertools

import pytest
import torch
from comfyui_perfusion.nodes.compose import (
    PerfusionApply,
    PerfusionCombineConcepts,
    PerfusionConceptSettings,
    PerfusionLoadConcept,
    overlap_report,
)
from comfyui_perfusion.nodes.host.uses import ConceptUse
from comfyui_perfusion.nodes.load import PerfusionLoader, PerfusionSaveConcept
from comfyui_perfusion.perfusion_core import ConceptSet, save_concept

from makers import make_concept
from test_model import encode, sample

PROMPT = "a photo of a <my-toy> beside a <my-cup>, on the beach"
SETTINGS = {"beta": 0.6, "temperature": 0.15, "key_lock": 0.0, "strength": 1.0}


@pytest.fixture
def files(model_folder, models):
    model, clip, _ = models("sd1")
    for seed, (trigger, superclass) in enumerate([("<my-toy>", "teddy"), ("<my-cup>", "cup")], 1):
        concept = make_concept(model, clip, trigger, superclass, seed)
        save_concept(concept, model_folder / f"{trigger.strip('<>')}.safetensors")
    return "my-toy.safetensors", "my-cup.safetensors"


def combined(*sets):
    return PerfusionCombineConcepts.execute({f"concepts_{i}": given for i, given in enumerate(sets)}).args


def painted(model, clip):
    return sample(model, encode(clip, PROMPT), encode(clip, "blurry"))


def test_load_combine_and_apply_give_what_loaders_in_a_row_give_in_any_order(models, files):
    model, clip, _ = models("sd1")
    settings = {
        "my-toy.safetensors": {**SETTINGS, "key_lock": 0.5},
        "my-cup.safetensors": {"beta": 0.7, "temperature": 0.1, "key_lock": 0.0, "strength": 0.8},
    }
    in_a_row = model, clip
    for name in files:
        in_a_row = PerfusionLoader.execute(*in_a_row, name, **settings[name]).args
    expected = painted(*in_a_row)
    for order in itertools.permutations(files):
        loaded = [PerfusionLoadConcept.execute(name, **settings[name]).args[0] for name in order]
        together, _, _ = combined(*loaded)
        found = painted(*PerfusionApply.execute(model, clip, together, "exact").args)
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=1e-3)
        apart = PerfusionApply.execute(model, clip, loaded[0], "exact").args
        found = painted(*PerfusionApply.execute(*apart, loaded[1], "exact").args)
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=1e-3)


def test_independent_merging_counts_what_alike_concepts_share_twice(models, files):
    model, clip, _ = models("sd1")
    together, _, _ = combined(*(PerfusionLoadConcept.execute(name, **SETTINGS).args[0] for name in files))
    exact, independent = (
        painted(*PerfusionApply.execute(model, clip, together, merging).args) for merging in ("exact", "independent")
    )
    assert (exact - independent).abs().max() > 1e-2
    for one in together:
        exact, independent = (
            painted(*PerfusionApply.execute(model, clip, (one,), merging).args) for merging in ("exact", "independent")
        )
        torch.testing.assert_close(exact, independent, atol=2e-3, rtol=1e-3)


def test_settings_hold_for_every_concept_that_passes(models, files):
    loaded = [PerfusionLoadConcept.execute(name, **SETTINGS).args[0] for name in files]
    together, _, _ = combined(*loaded)
    (changed,) = PerfusionConceptSettings.execute(together, beta=0.8, temperature=0.2, key_lock=0.3, strength=0.5).args
    assert [use.concept for use in changed] == [use.concept for use in together]
    assert {(use.beta, use.temperature, use.key_lock, use.strength) for use in changed} == {(0.8, 0.2, 0.3, 0.5)}


def test_of_the_same_trigger_twice_the_later_counts_and_empty_inputs_do_not(models, files):
    first, second = (
        PerfusionLoadConcept.execute(files[0], **{**SETTINGS, "beta": beta}).args[0] for beta in (0.5, 0.8)
    )
    together, _, report = combined(first, None, second)
    assert [use.beta for use in together] == [0.8]
    assert report == "my-toy is here twice: only the later settings count.\n<my-toy> is alone."


def test_nothing_to_combine_is_an_error_that_says_so(models, files):
    (off,) = PerfusionLoadConcept.execute(files[0], **{**SETTINGS, "strength": 0.0}).args
    with pytest.raises(ValueError, match="connect at least one"):
        combined(off, None)


def test_sixteen_concepts_of_one_superclass_at_once(models):
    model, clip, _ = models("sd1")
    uses = [ConceptUse(make_concept(model, clip, f"<toy{i}>", "teddy", i), 0.6, 0.15) for i in range(16)]
    together, overlap, report = combined(*((use,) for use in uses))
    assert len(together) == 16
    assert len(report.splitlines()) == 16 * 15 / 2
    assert overlap.shape[1] == overlap.shape[2] > 16 * 48
    model, clip = PerfusionApply.execute(model, clip, together, "exact").args
    prompt = "a photo of " + " and ".join(use.concept.trigger for use in uses)
    assert sample(model, encode(clip, prompt), encode(clip, "blurry")).isfinite().all()


def test_the_report_says_who_will_mix(models):
    toy = make_concept(*models("sd1")[:2])
    one, other = torch.eye(toy.dim)[:2]
    toy = toy.replace(target_input=one, target_dual=one)
    twin, far = toy.replace(trigger="<my-twin>"), toy.replace(trigger="<my-cup>", target_input=other, target_dual=other)
    first, *others = overlap_report(ConceptSet([toy, far, twin], 0.7, 0.15)).splitlines()
    assert first == "<my-toy> and <my-twin> overlap 1.00: they will mix"
    assert all("keep apart" in line for line in others)
    alike = toy.replace(trigger="<my-bear>", target_input=0.8 * one + 0.6 * other, target_dual=0.8 * one + 0.6 * other)
    assert overlap_report(ConceptSet([toy, alike])) == "<my-toy> and <my-bear> overlap 0.80: they may mix a little"


def test_a_trained_set_of_two_is_not_saved_into_one_file(models, files, model_folder):
    together, _, _ = combined(*(PerfusionLoadConcept.execute(name, **SETTINGS).args[0] for name in files))
    before = sorted(model_folder.iterdir())
    with pytest.raises(ValueError, match="A file holds one concept, these are 2"):
        PerfusionSaveConcept.execute(together, "both", False)
    assert sorted(model_folder.iterdir()) == before
