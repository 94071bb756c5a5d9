"""It is said, on the node and in the log, where concepts do nothing since a later one has the same trigger."""

import sys
from types import SimpleNamespace

import pytest
from comfyui_perfusion.nodes.compose import PerfusionApply, PerfusionCombineConcepts
from comfyui_perfusion.nodes.host.uses import ConceptUse, clashes
from comfyui_perfusion.nodes.load import PerfusionLoader
from comfyui_perfusion.perfusion_core import save_concept

from makers import make_concept


@pytest.fixture
def said(monkeypatch):
    """(text, node) of all that nodes show; every node is number 7."""
    shown = []
    server = SimpleNamespace(client_id=None, send_progress_text=lambda text, node: shown.append((text, node)))
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=SimpleNamespace(instance=server)))
    for node in (PerfusionLoader, PerfusionApply, PerfusionCombineConcepts):
        monkeypatch.setattr(node, "hidden", SimpleNamespace(unique_id="7"))
    return shown


@pytest.fixture
def concepts(models):
    model, clip, _ = models("sd1")
    toy = make_concept(model, clip, "<my-toy>", "teddy", 1)
    return toy.replace(name="toy"), toy.replace(name="other", trigger="<MY-Toy>"), toy.replace(name="c", trigger="<c>")


def test_only_what_does_nothing_is_named(concepts):
    toy, other, cup = map(ConceptUse, concepts)
    assert clashes([toy, cup]) == []
    (line,) = clashes([toy, cup, other])
    assert line == "toy and other have the same trigger, <MY-Toy>: only other acts. Give one of them another trigger."
    assert clashes([toy, toy.replace(beta=0.5)]) == ["toy is here twice: only the later settings count."]
    assert clashes([toy.replace(strength=0.0), other]) == clashes([toy, other.replace(strength=0.0)]) == []
    assert len(clashes([toy, other, toy])) == 2


def test_loaders_in_a_row_say_it(models, concepts, said, caplog, model_folder):
    model, clip, _ = models("sd1")
    for concept in concepts:
        save_concept(concept, model_folder / f"{concept.name}.safetensors")
        model, clip = PerfusionLoader.execute(model, clip, f"{concept.name}.safetensors").args
    ((text, node),) = said
    assert node == "7"
    assert (
        text
        == "toy and other have the same trigger, &lt;MY-Toy&gt;: only other acts. Give one of them another trigger."
    )
    assert "only other acts" in caplog.text


def test_applying_and_combining_say_it(models, concepts, said, caplog):
    model, clip, _ = models("sd1")
    toy, other, cup = map(ConceptUse, concepts)
    model, clip = PerfusionApply.execute(model, clip, (toy, cup), "exact").args
    assert said == []
    PerfusionApply.execute(model, clip, (other,), "exact")
    uses, _, report = PerfusionCombineConcepts.execute({"concepts_0": (toy,), "concepts_1": (other, cup)}).args
    assert len(said) == len(caplog.records) == 2
    assert report.splitlines()[0].startswith("toy and other have the same trigger")
    assert len(uses) == 2
