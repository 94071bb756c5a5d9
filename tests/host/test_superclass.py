"""Which token a superclass locks keys to, and what is said where that is no word."""

import sys
import types

import pytest
from comfyui_perfusion.nodes.host import routes, text
from comfyui_perfusion.nodes.host.superclass import locked_without_model
from comfyui_perfusion.nodes.train import PerfusionTrainConcept

from makers import train_node

KNOWN = {
    "teddy": "teddy",
    "teddy bear": "bear",
    "Dog": "dog",
    "dog.": "dog",
    "(dog:1.2)": "dog",
    "toy (plush)": "plush",
    "t-shirt": "shirt",
    "teddy_bear,": "bear",
    "cafe\u0301": "caf\u00e9",
    "dog's": "dog",
}
UNKNOWN = {
    "Hund": "'d'",
    "\u72d7": "a part of a character",
    "\uac15\uc544\uc9c0": "a part of a character",
    "\u043a\u043e\u0448\u043a\u0430": "'\u0430'",
    "axolotl": "'l'",
    "dog 2": "the number '2'",
    "dog2": "the number '2'",
}


@pytest.mark.parametrize(("superclass", "locked"), KNOWN.items())
def test_a_known_word_is_locked_whatever_stands_around_it(superclass, locked):
    read = locked_without_model(superclass)
    assert (read.locked, read.known, read.warning) == (locked, True, None)


@pytest.mark.parametrize(("superclass", "locked"), UNKNOWN.items())
def test_what_is_no_one_token_is_warned_of_with_what_would_be_locked(superclass, locked):
    read = locked_without_model(superclass)
    assert not read.known
    assert locked in read.warning
    assert "English word" in read.warning


@pytest.mark.parametrize("superclass", ["", " \n", "...", "(:1.2)", "\U0001f436", "\u200b"])
def test_a_superclass_without_a_word_is_refused(superclass):
    with pytest.raises(ValueError, match=r"superclass .*Give the plain word"):
        locked_without_model(superclass)


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_every_clip_locks_what_is_said_without_one(models, kind):
    _, clip, _ = models(kind)
    for superclass in (*KNOWN, *UNKNOWN):
        read = locked_without_model(superclass)
        assert text.locked(clip, superclass) == read
        assert set(text.superclass_tokens(clip, superclass).values()) == {read.token}


def test_the_page_asks_before_a_training():
    answer = routes.read_superclass({"words": "(red dog:1.2)"})
    assert answer == {"superclass": "red dog", "token": 1929, "locked": "dog", "known": True, "warning": None}
    assert "'d'" in routes.read_superclass({"words": "Hund"})["warning"]
    with pytest.raises(ValueError, match="empty"):
        routes.read_superclass({"words": ""})
    for asked in ({}, {"words": "x" * 201}, {"words": "a\0b"}):
        with pytest.raises(routes.Refusal):
            routes.read_superclass(asked)


@pytest.mark.usefixtures("model_folder")
@pytest.mark.parametrize(("superclass", "said"), [("dog.", "follows 'dog'"), ("Hund", "follow 'd'")])
def test_the_node_says_what_is_locked_before_it_does_anything(models, monkeypatch, caplog, superclass, said):
    texts = []
    server = types.SimpleNamespace(client_id=None, send_progress_text=lambda text, node: texts.append((text, node)))
    monkeypatch.setitem(
        sys.modules, "server", types.SimpleNamespace(PromptServer=types.SimpleNamespace(instance=server))
    )
    monkeypatch.setattr(PerfusionTrainConcept, "hidden", types.SimpleNamespace(unique_id="7"))
    with pytest.raises(ValueError, match="There are no photos"):
        train_node(models, superclass=[superclass], images=[])
    ((shown, node),) = texts
    assert said in shown
    assert node == "7"
    assert (said in caplog.text) == (superclass == "Hund")


@pytest.mark.usefixtures("model_folder")
def test_the_file_and_the_report_have_the_plain_words(models, monkeypatch):
    monkeypatch.setattr(PerfusionTrainConcept, "hidden", types.SimpleNamespace(unique_id=None))
    _, (last,), *_, report = train_node(models, superclass=["(red Hund:1.2)."], steps=[1]).args
    assert last.concept.superclass == "red Hund"
    assert "Keys are locked to 'd', the last token of 'red Hund'." in report
    assert "does not know 'Hund'" in report
