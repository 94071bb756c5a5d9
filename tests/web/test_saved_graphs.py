"""Graphs of former versions, in which strength stood behind key_lock, keep their values."""

import json
from pathlib import Path

import pytest
from steps import each_renderer

GRAPHS = Path(__file__).parent / "old_graphs"
OURS = ("PerfusionLoader", "PerfusionLoadConcept", "PerfusionConceptSettings")
BY_NAME = """ours => app.graph.nodes.filter(({ type }) => ours.includes(type)).map(node => Object.fromEntries(
    node.widgets.filter(({ serialize }) => serialize !== false).map(({ name, value }) => [name, value])))"""
SHIPPED = {
    "strength": 1, "beta": 0.7, "temperature": 0.15, "key_lock": 0, "start_percent": 0, "end_percent": 1,
    "down": 1, "middle": 1, "up": 1,
}  # fmt: skip
SAVED = {
    "strength": 0.85, "beta": 0.61, "temperature": 0.2, "key_lock": 0.5, "start_percent": 0.1, "end_percent": 0.9,
    "down": 1.1, "middle": 1.2, "up": 1.3,
}  # fmt: skip


def load(frontend, graph):
    frontend.run("graph => app.loadGraphData(graph)", graph)
    frontend.close_others()


def values(frontend):
    """Of the nodes that use a concept, without which one it is."""
    found = frontend.run(BY_NAME, OURS)
    return [{name: value for name, value in node.items() if name != "concept"} for node in found]


def old(name):
    return json.loads((GRAPHS / f"{name}.json").read_text(encoding="utf-8"))


@each_renderer
@pytest.mark.parametrize("name", ["generate", "two_concepts"])
@pytest.mark.parametrize(("kind", "expected"), [("shipped", SHIPPED), ("saved", SAVED)], ids=["shipped", "saved"])
def test_a_former_graph_keeps_its_values(frontend, kind, name, expected):
    load(frontend, old(f"{kind}_{name}"))
    assert values(frontend) == [expected] * (2 if name == "two_concepts" else 1)
    load(frontend, frontend.run("() => JSON.parse(JSON.stringify(app.graph.serialize()))"))  # saved anew, and by undo
    assert values(frontend) == [expected] * (2 if name == "two_concepts" else 1)


def test_a_former_settings_node_keeps_its_values(frontend):
    graph = old("shipped_generate")
    (node,) = [node for node in graph["nodes"] if node["type"] == "PerfusionLoader"]
    graph["nodes"] = [
        {**node, "type": "PerfusionConceptSettings", "inputs": [], "outputs": [], "widgets_values": list(range(1, 6))}
    ]
    graph["links"] = []
    load(frontend, graph)
    (shown,) = values(frontend)
    assert list(shown.items())[:5] == [
        ("strength", 4), ("beta", 1), ("temperature", 2), ("key_lock", 3), ("start_percent", 5)
    ]  # fmt: skip


def test_a_former_node_in_a_subgraph_keeps_its_values(frontend):
    load(frontend, old("saved_generate"))
    graph = frontend.run(
        """() => {
            const node = app.graph.nodes.find(({ type }) => type === 'PerfusionLoader')
            app.graph.convertToSubgraph(new Set([node]))
            return JSON.parse(JSON.stringify(app.graph.serialize()))  // as a file has it
        }"""
    )
    (inner,) = [node for node in graph["definitions"]["subgraphs"][0]["nodes"] if node["type"] == "PerfusionLoader"]
    first = [entry["name"] for entry in inner["inputs"]].index("strength")
    inner["inputs"].insert(first + 3, inner["inputs"].pop(first))
    inner["widgets_values"].insert(4, inner["widgets_values"].pop(1))
    inner.pop("widgets_values_named", None)
    load(frontend, graph)
    found = BY_NAME.replace("app.graph.nodes", "app.graph.nodes.find(({ subgraph }) => subgraph).subgraph.nodes")
    (shown,) = frontend.run(found, OURS)
    assert {name: shown[name] for name in SAVED} == SAVED


def test_a_copy_keeps_its_values(frontend):
    load(frontend, old("saved_generate"))
    copied = frontend.run(
        """() => {
            const copy = app.graph.nodes.find(({ type }) => type === 'PerfusionLoader').clone()
            return Object.fromEntries(copy.widgets.map(({ name, value }) => [name, value]))
        }"""
    )
    assert {name: copied[name] for name in SAVED} == SAVED
