"""Our nodes inside of subgraphs, with inputs promoted to the outside, as newer and as older frontends save that."""

import pytest
from steps import GRID, LOAD_AGAIN, button, each_renderer, in_workflow, panel, says

from browser import NAVIGATED

# Puts nodes of a type into a subgraph with inputs that are promoted; by links, or as older frontends saved it
WRAP = """async ([type, names, old]) => {
    const { subgraph, node } = app.graph.convertToSubgraph(new Set(app.graph.nodes.filter(node => node.type === type)))
    const inner = subgraph.nodes.find(node => node.type === type)
    if (!old) for (const name of names) {
        const input = inner.inputs.find(({ widget }) => widget?.name === name)
        subgraph.addInput(name, input.type).connect(input, inner)
    }
    await window.reload(saved => {
        const { properties } = saved.nodes.find(({ id }) => String(id) === String(node.id))
        if (old) properties.proxyWidgets = names.map(name => [String(inner.id), name])
    })
}"""
OUTER = "app.rootGraph.nodes.find(({ subgraph }) => subgraph)"
PROMOTED = f"name => {OUTER}.widgets.find(widget => widget.name.split(': ').at(-1) === name)"  # '4: beta' is old
ENTER = f"""() => {{
    const outer = {OUTER}
    app.canvas.openSubgraph(outer.subgraph, outer)
    app.canvas.ds.scale = 1
    app.canvas.ds.offset = [-outer.subgraph.nodes[0].pos[0] + 300, -outer.subgraph.nodes[0].pos[1] + 100]
    app.canvas.setDirty(true, true)
}}"""
each_way = pytest.mark.parametrize("old", [False, True], ids=["links", "proxies"])


def wrap(page, type, *names, old=False):
    page.evaluate(LOAD_AGAIN)
    page.evaluate(WRAP, [type, names, old])
    page.wait_for_function(NAVIGATED)


def enter(page):
    page.evaluate(ENTER)
    page.wait_for_function(NAVIGATED)


def set_outside(page, name, value):
    """As the host does it when a user changes a promoted input."""
    script = f"""([name, value]) => {{
        const widget = ({PROMOTED})(name)
        widget.value = value
        widget.callback?.(value, app.canvas, {OUTER})
        app.extensionManager.workflow.activeWorkflow.changeTracker.checkState()
    }}"""
    page.evaluate(script, [name, value])


def outside(page, name):
    return page.evaluate(f"name => ({PROMOTED})(name).value", name)


def runs_with(page, type):
    """The inputs with which a node would run."""
    prompt = page.evaluate("async () => (await app.graphToPrompt()).output")
    return next(node["inputs"] for node in prompt.values() if node["class_type"] == type)


@each_way
@each_renderer
def test_a_loader_shows_and_sets_what_was_promoted(frontend, page, old):
    frontend.complaints.clear()
    wrap(page, "PerfusionLoader", "concept", "beta", old=old)
    set_outside(page, "concept", "vases/amphora.safetensors")
    set_outside(page, "beta", 0.6)
    page.evaluate("() => window.reload()")
    page.wait_for_function(NAVIGATED)
    enter(page)
    loader = panel(page).filter(has_text="<amphora> is in no prompt yet.")  # that of before goes at the next drawing
    button(loader, "<amphora>").wait_for()
    button(loader, "Editable").click()
    assert outside(page, "beta") == 0.75
    assert runs_with(page, "PerfusionLoader")["beta"] == 0.75
    assert runs_with(page, "PerfusionLoader")["concept"] == "vases/amphora.safetensors"
    page.evaluate("() => app.extensionManager.command.execute('Comfy.Undo')")
    page.wait_for_function(f"({PROMOTED})('beta').value === 0.6")
    assert runs_with(page, "PerfusionLoader")["beta"] == 0.6
    assert [line for line in frontend.complaints if "perfusion" in line.lower()] == []


@each_renderer
def test_a_promoted_concept_is_suggested_in_prompts(page):
    wrap(page, "PerfusionLoader", "concept")
    set_outside(page, "concept", "vases/amphora.safetensors")
    page.evaluate("() => { app.canvas.ds.scale = 1; app.canvas.ds.offset = [-300, 130] }")
    box = page.locator("textarea:visible").first
    box.fill("")
    box.press_sequentially("an am")
    offered = page.get_by_role("listbox", name="Triggers").get_by_role("option")
    offered.filter(has_text="<amphora> vase").wait_for()
    assert offered.count() == 1


def test_a_loader_in_a_subgraph_knows_the_checkpoint_outside(page):
    wrap(page, "PerfusionLoader", "concept")
    set_outside(page, "concept", "my-tiger.safetensors")
    enter(page)
    says(panel(page).get_by_role("alert"), "made for SDXL, but v1-5-pruned-emaonly-fp16.safetensors looks like SD 1.x")


def paint(page, id):
    output = {"images": [{"filename": "example.png", "subfolder": "", "type": "input"}], "perfusion_sweep": [GRID]}
    script = """([id, output]) => {
        app.api.dispatchCustomEvent('executed', { node: id, display_node: id, output })
    }"""
    page.evaluate(script, [id, output])


@in_workflow("7 Sweep")
@each_renderer
def test_a_picture_of_a_sweep_sets_what_was_promoted(page):
    wrap(page, "PerfusionLoadConcept", "beta")
    page.evaluate("() => { app.canvas.ds.scale = 1; app.canvas.ds.offset = [-300, 130] }")
    sweep = "String(app.graph.nodes.find(({ type }) => type === 'PerfusionSweep').id)"
    paint(page, page.evaluate(f"() => {sweep}"))
    button(page.get_by_role("group", name="Grid"), "beta 0.6, temperature 0.3").press("Enter")
    assert outside(page, "beta") == 0.6
    inputs = runs_with(page, "PerfusionLoadConcept")
    assert (inputs["beta"], inputs["temperature"]) == (0.6, 0.3)


@in_workflow("7 Sweep")
@each_renderer
def test_a_sweep_in_a_subgraph_shows_its_pictures(page):
    wrap(page, "PerfusionSweep", "text")
    enter(page)
    paint(page, page.evaluate(f"() => `${{{OUTER}.id}}:${{{OUTER}.subgraph.nodes[0].id}}`"))
    button(page.get_by_role("group", name="Grid"), "beta 0.5, temperature 0.1").wait_for()


@in_workflow("2 Train SD1.5")
@each_renderer
def test_a_trainer_in_a_subgraph_shows_its_panel_outside(page, request):
    version = page.evaluate("() => window.__COMFYUI_FRONTEND_VERSION__").split(".")
    if "vue" in request.node.name and [int(part) for part in version] < [1, 51]:
        pytest.skip("Vue nodes of older frontends show only what is promoted.")
    wrap(page, "PerfusionTrainConcept", "steps")
    page.evaluate("() => { app.canvas.ds.scale = 1; app.canvas.ds.offset = [-600, 130] }")
    send = "([name, detail]) => app.api.dispatchCustomEvent(name, detail)"
    id = page.evaluate(f"() => `${{{OUTER}.id}}:${{{OUTER}.subgraph.nodes[0].id}}`")
    course = {
        "node": id, "training": "t", "done": 100, "total": 200, "left": 100, "stopping": False, "ended": False,
        "curve": [], "rows": [], "used": None, "chosen": None, "warnings": {},
    }  # fmt: skip
    page.evaluate(send, ["executing", id])
    page.evaluate(send, ["perfusion.training", course])
    stop = page.get_by_role("button", name="Stop and keep")
    for inside in (False, True):
        if inside:
            enter(page)
        says(panel(page).locator("p:visible"), "Step 100 of 200")
        assert stop.count() == 1 and stop.is_enabled()
