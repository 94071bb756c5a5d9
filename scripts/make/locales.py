"""Writes locales/en/nodeDefs.json, all that the nodes' schemas say to a user.

The other languages have the same entries; tests/host/test_locales.py says which of them are missing or left over.
"""

import json
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

LOCALES = Path(__file__).resolve().parents[2] / "locales"
SYNTAX = re.compile(r"[{}@|]")  # of vue-i18n, which cannot read every text with these


def node_texts(info: dict[str, Any]) -> dict[str, Any]:
    """What can be translated of a node, from its entry in /object_info, shaped as in nodeDefs.json."""
    outputs = {}
    for index, (name, kind) in enumerate(zip(info["output_name"], info["output"], strict=True)):
        tooltip = info["output_tooltips"][index]
        outputs[str(index)] = ({} if name == kind else {"name": name}) | ({"tooltip": tooltip} if tooltip else {})
    return {
        "display_name": info["display_name"],
        "description": info["description"],
        "inputs": dict(_input_texts(info["input"])),
        "outputs": {index: texts for index, texts in outputs.items() if texts},
    }


def _input_texts(groups: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, str]]]:
    """By the names under which the frontend looks for them: _ in place of the dot in the name of a part of an input."""
    for name, (kind, options) in {**groups.get("required", {}), **groups.get("optional", {})}.items():
        if kind == "COMFY_AUTOGROW_V3":  # the frontend takes nothing else of it
            template = options["template"]
            ((_, (_, one)),) = [*template["input"]["required"].items(), *template["input"]["optional"].items()]
            for number in range(template["max"]):
                yield f"{prefix}{name}_{template['prefix']}{number}", {"tooltip": one["tooltip"]}
            continue
        yield prefix + name, {"name": options.get("display_name", name), "tooltip": options["tooltip"]}
        for choice in options.get("options", ()) if kind == "COMFY_DYNAMICCOMBO_V3" else ():
            yield from _input_texts(choice["inputs"], f"{prefix}{name}_")


def without_syntax(texts: dict[str, Any]) -> dict[str, Any]:
    """Without what vue-i18n cannot read: the frontend then shows what the schema says."""
    kept = {key: without_syntax(text) if isinstance(text, dict) else text for key, text in texts.items()}
    return {key: text for key, text in kept.items() if isinstance(text, dict) or not SYNTAX.search(text)}


def written(texts: dict[str, Any]) -> str:
    """As it stands in a file of locales/."""
    return json.dumps(texts, indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    from comfyui import Server

    with tempfile.TemporaryDirectory() as base, Server(Path(base)) as server:
        nodes = {name: info for name, info in server.object_info().items() if name.startswith("Perfusion")}
    texts = without_syntax({name: node_texts(info) for name, info in nodes.items()})
    (LOCALES / "en" / "nodeDefs.json").write_text(written(texts), encoding="utf-8")


if __name__ == "__main__":
    main()
