"""Panels in the frontend's ways of making, drawing and describing nodes, whichever frontend and renderer it is."""

from steps import DRAWN, each_renderer, in_workflow, panel

NEW_NODE = """type => {
    app.graph.clear()
    window.made = LiteGraph.createNode(type)
    return (window.made.widgets ?? []).some(({ element }) => element?.querySelector('.perfusion-panel'))
}"""


def test_nodes_have_their_panels_before_they_are_in_a_graph(frontend, our_nodes):
    frontend.complaints.clear()
    with_panel = [name for name in our_nodes if frontend.run(NEW_NODE, name)]
    assert {"PerfusionLoadConcept", "PerfusionLoader", "PerfusionSweep", "PerfusionTrainConcept"} <= set(with_panel)
    assert [line for line in frontend.complaints if "perfusion" in line.lower()] == []


def test_a_new_node_does_not_grow_for_its_folded_inputs(frontend, our_nodes):
    height = "() => window.made.size[1]"
    for name, info in our_nodes.items():
        inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
        if not any(rest[0].get("advanced") for _, *rest in inputs.values() if rest):
            continue
        frontend.run(NEW_NODE, name)
        made = frontend.run(height)
        frontend.run("() => { app.graph.add(window.made) }")
        frontend.run(DRAWN)
        assert frontend.run(height) == made, name


@in_workflow("2 Train SD1.5")
@each_renderer
def test_the_properties_leave_the_panel_where_it_is(page):
    page.evaluate("() => app.canvas.selectNode(app.graph.nodes.find(({ type }) => type === 'PerfusionTrainConcept'))")
    page.evaluate("() => { app.canvas.ds.offset[1] += 60; app.canvas.setDirty(true, true) }")  # off the Run button
    width = panel(page).bounding_box()["width"]
    page.get_by_role("button", name="Node Info").click()
    properties = page.get_by_test_id("properties-panel")
    properties.get_by_role("tab").first.click()  # its parameters
    properties.get_by_text("superclass").first.wait_for()
    page.evaluate(DRAWN)
    assert panel(page).count() == 1
    assert panel(page).bounding_box()["width"] == width
    assert "perfusion_training" not in properties.inner_text()
    properties.get_by_role("tab").nth(1).click()
    page.get_by_role("button", name="Node Info").click()
