"""locales/: in English what the schemas say, in the other languages all of it, nothing else, and nothing lost.
The same for what the panels say, which in English stands in web/*.js."""

import asyncio
import json
import re
from collections import Counter

import folder_paths
import pytest
from comfyui_perfusion.nodes.extension import PerfusionExtension
from comfyui_perfusion.nodes.host import clipseg, files, scorers

from locales import LOCALES, SYNTAX, node_texts, without_syntax, written

LANGUAGES = ("zh", "ja", "ko", "fr", "de", "es")
SAME = {"Perfusion Loader", "Perfusion Covariance", "beta", "temperature", "key_lock", "cfg", "accumulation"}
SAME |= {
    "concept",
    "concepts",
    "covariance",
    "image",
    "images",
    "photos",
    "prompts",
    "ridge",
}  # where they are that word too
SAME |= {"Concept", "Concepts", "Name", "Normal", "Notes", "Training", "{action} {name}"}
# Numbers, folders, example files and triggers, endings of files
PANEL_TEXT = re.compile(r'\btext\(\s*"([^"]+)"', re.ASCII)
MARKS = re.compile(r"\d+(?:\.\d+)?|[a-z]+/[\w/-]+|<[\w-]+>|\.[a-z]+\b|CLIP-[IT]|'a photo of a", re.ASCII)


@pytest.fixture(scope="module")
def schemas():
    nodes = asyncio.run(PerfusionExtension().get_node_list())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_paths, "folder_names_and_paths", dict(folder_paths.folder_names_and_paths))
        patch.setattr(folder_paths, "filename_list_cache", {})
        for part in (files, scorers, clipseg):
            part.register()
        return {node.GET_SCHEMA().node_id: node_texts(node.GET_NODE_INFO_V1()) for node in nodes}


def read(language: str, name: str) -> str:
    return (LOCALES / language / f"{name}.json").read_text(encoding="utf-8")


def flat(texts: dict, prefix: str = "") -> dict[str, str]:
    found = {}
    for key, text in texts.items():
        found |= flat(text, f"{prefix}{key}.") if isinstance(text, dict) else {prefix + key: text}
    return found


def without_panels(language: str) -> dict:
    return {key: texts for key, texts in json.loads(read(language, "main")).items() if key != "perfusion"}


def panel_texts() -> set[str]:
    code = "".join(file.read_text("utf-8") for file in (LOCALES.parent / "web").glob("*.js"))
    texts = PANEL_TEXT.findall(code)
    assert len(texts) == len(re.findall(r"(?<!function )\btext\(", code)), "A sentence is not written out."
    return set(texts)


def test_english_is_what_the_schemas_say(schemas):
    assert json.loads(read("en", "nodeDefs")) == without_syntax(schemas), "Run scripts/make/locales.py."
    assert read("en", "nodeDefs") == written(without_syntax(schemas)), "Run scripts/make/locales.py."


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_translation_has_every_text_of_the_schemas_and_no_other(schemas, language):
    texts = json.loads(read(language, "nodeDefs"))
    assert flat(texts).keys() == flat(schemas).keys()
    assert list(flat(texts)) == list(flat(schemas)), "The order is another."
    assert read(language, "nodeDefs") == written(texts)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_translation_keeps_numbers_names_and_examples(schemas, language):
    texts, english = flat(json.loads(read(language, "nodeDefs"))), flat(schemas)
    for key in english.keys() & texts.keys():
        if not key.endswith(".name"):
            assert Counter(MARKS.findall(texts[key])) == Counter(MARKS.findall(english[key])), f"{key}: {texts[key]}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_nothing_is_left_in_english(schemas, language):
    texts, english = flat(json.loads(read(language, "nodeDefs"))), flat(schemas)
    assert [text for key, text in texts.items() if text == english.get(key) and text not in SAME] == []


@pytest.mark.parametrize("language", ("en", *LANGUAGES))
def test_no_text_has_what_the_frontend_reads_as_syntax(language):
    """Older frontends fail to draw a node whose tooltip has {}: the translations say it in words."""
    texts = flat(json.loads(read(language, "nodeDefs"))) | flat(without_panels(language))
    assert [text for text in texts.values() if SYNTAX.search(text) or not text.strip()] == []


def test_every_language_names_the_category_and_the_sidebar():
    english = without_panels("en")
    (sidebar,) = english.keys() - {"nodeCategories"}
    assert json.dumps(sidebar) in (LOCALES.parent / "web" / "browser.js").read_text(encoding="utf-8")
    for language in LANGUAGES:
        assert flat(without_panels(language)).keys() == flat(english).keys()


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_panels_have_every_text_and_no_other(language):
    translated = json.loads(read(language, "main"))["perfusion"]
    assert translated.keys() == panel_texts()
    assert read(language, "main") == written(json.loads(read(language, "main")))
    assert [key for key, text in translated.items() if text == key and key not in SAME] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_texts_of_the_panels_keep_their_values_and_folders(language):
    marks = re.compile(rf"\{{\w+\}}|{MARKS.pattern}", re.ASCII)
    for key, text in json.loads(read(language, "main"))["perfusion"].items():
        assert Counter(marks.findall(text)) == Counter(marks.findall(key)), f"{key}: {text}"
