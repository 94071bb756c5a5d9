"""What tests of the face do on the page, in either renderer."""

import pytest

LOADER = "app.graph.nodes.find(node => node.type === 'PerfusionLoader')"
TOGGLE_SIDEBAR = "() => app.extensionManager.sidebarTab.toggleSidebarTab('perfusion')"
LIST_AGAIN = "() => app.reloadNodeDefs?.() ?? app.refreshComboInNodes()"  # as the key R does
# Takes the demo model in place of a checkpoint
ON_DEMO_MODEL = """() => {
    const old = app.graph.nodes.find(({ type }) => type === 'CheckpointLoaderSimple')
    const demo = LiteGraph.createNode('PerfusionDemoModel')
    app.graph.add(demo)
    for (const [slot, { links }] of old.outputs.entries())
        for (const { target_id, target_slot } of [...links ?? []].map(id => app.graph.links.get(id)))
            demo.connect(slot, app.graph.getNodeById(target_id), target_slot)
    app.graph.remove(old)
}"""
# Sets widgets by node type
SET = """changes => {
    for (const node of app.graph.nodes)
        for (const [name, value] of Object.entries(changes[node.type] ?? {}))
            node.widgets.find(widget => widget.name === name).value = value
}"""
RUN = """() => new Promise(done => {
    for (const end of ['execution_success', 'execution_error', 'execution_interrupted'])
        app.api.addEventListener(end, ({ detail }) => done([end, detail.exception_message ?? '']), { once: true })
    app.queuePrompt(0)
})"""
# Where the coloured grounds of a prompt begin and how long they are, in letters
GROUNDS = """text => {
    const area = [...document.querySelectorAll('textarea')].find(area => area.checkVisibility() && area.value === text)
    const style = getComputedStyle(area), pen = document.createElement('canvas').getContext('2d')
    pen.font = style.font
    const letters = width => [...text, ''].findIndex((_, at) => pen.measureText(text.slice(0, at)).width > width - 1)
    const [places, sizes] = [style.backgroundPosition, style.backgroundSize].map(list => list.split(', '))
    return places.slice(0, -1).map((place, at) => {
        const start = parseFloat(place) - parseFloat(style.paddingLeft)
        const first = letters(start)
        return [first, letters(start + parseFloat(sizes[at])) - first]
    })
}"""
# Afterwards window.reload() loads the graph as it is, as opening a saved workflow does
LOAD_AGAIN = """() => window.reload = async (change = () => {}) => {
    const saved = JSON.parse(JSON.stringify((app.rootGraph ?? app.graph).serialize()))
    change(saved)
    await app.loadGraphData(saved, true, true, null)
    for (let frame = 0; frame < 3; frame++) await new Promise(requestAnimationFrame)
}"""
# What is to be drawn, and mounted by the renderer, is there afterwards
DRAWN = "async () => { for (let frame = 0; frame < 3; frame++) await new Promise(requestAnimationFrame) }"
# Asked again and again: whether no node has moved or grown since it was asked last
SETTLED = """() => {
    const before = window.layout
    window.layout = JSON.stringify(app.graph.nodes.map(({ boundingRect }) => [...boundingRect]))
    return window.layout === before
}"""
PANEL_SHOWN = """() => app.graph.nodes.some(({ widgets }) => (widgets ?? []).some(
    ({ element }) => element?.querySelector?.(':scope > .perfusion-panel')?.checkVisibility()))"""
# The most similar words of the last prompt, by concept file, as a server tells them; kept as long as the page
TELL_WORDS = "words => app.api.dispatchCustomEvent('perfusion.words', words)"
GRID = {  # of example.png as it were one: three by two cells, the last not finished
    "columns": {"kind": "beta", "values": [0.5, 0.6, 0.7]}, "rows": {"kind": "temperature", "values": [0.1, 0.3]},
    "triggers": ["<my-teddy>"], "pictures": 5, "size": [64, 64], "cell": 15, "gap": 3,
}  # fmt: skip
each_renderer = pytest.mark.parametrize("renderer", ["classic", "vue"], indirect=True)


def in_workflow(name):
    """Marks a test for which ``page`` opens another workflow."""
    return pytest.mark.parametrize("workflow", [name])


def open_workflow(frontend, name):
    frontend.load(name)
    frontend.run(
        "() => { app.canvas.ds.scale = 1; app.canvas.ds.offset = [-300, 130]; app.canvas.setDirty(true, true) }"
    )
    frontend.page.wait_for_function(PANEL_SHOWN)  # of a node of this graph, not of the one before


def about_us(lines):
    """Lines that name the pack or its files, but for a translated help page, which the frontend asks for first."""
    return [line for line in lines if "perfusion" in line.lower() and "/en.md" not in line]


def panel(page):
    return page.locator(".perfusion-panel")


def button(place, name):
    return place.get_by_role("button", name=name, exact=True)


def says(place, text):
    place.filter(has_text=text).wait_for()


def choose(page, **values):
    """Sets widgets of the Loader as the host's do it."""
    page.evaluate(
        f"""values => {{
            for (const [name, value] of Object.entries(values)) {{
                const widget = {LOADER}.widgets.find(widget => widget.name === name)
                widget.value = value
                widget.callback(value)
            }}
        }}""",
        values,
    )


def settings(page):
    """concept, strength, beta, temperature and key_lock of the Loader."""
    return page.evaluate(f"() => {LOADER}.widgets.slice(0, 5).map(({{ value }}) => value)")


def look(page):
    """What the host does after a user's change: it looks for what is other, for undo, and tells it."""
    page.evaluate(
        """() => {
            const tracker = app.extensionManager.workflow.activeWorkflow.changeTracker
            if (tracker.captureCanvasState) tracker.captureCanvasState()
            else tracker.checkState()
        }"""
    )


def wait_until_settled(page):
    """Nodes have grown to their content."""
    page.evaluate("() => { delete window.layout }")  # of another graph
    page.wait_for_function(SETTLED, polling=500)


def prompts(page):
    texts = "app.graph.nodes.filter(node => node.type === 'CLIPTextEncode').map(node => node.widgets[0].value)"
    return sorted(page.evaluate(f"() => {texts}"))


def curve(page):
    return panel(page).locator(".perfusion-curve").get_attribute("d")


def names(concepts):
    return concepts.get_by_role("listitem").locator("b").all_inner_texts()
