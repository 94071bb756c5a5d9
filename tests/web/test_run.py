"""A training on the demo model, started, watched and stopped in the browser."""

import pytest

TRAINER = "app.graph.nodes.find(({ type }) => type === 'PerfusionTrainConcept')"
QUICK = {"steps": 5000, "previews": "", "checkpoint_every": 2500, "batch_size": 1, "accumulation": 1}

# Sets widgets by node type, in the graph that is shown
SET = """changes => {
    for (const node of app.graph.nodes)
        for (const [name, value] of Object.entries(changes[node.type] ?? {}))
            node.widgets.find(widget => widget.name === name).value = value
}"""
# Takes the demo model and its photos in place of a checkpoint and one's own
ON_DEMO_MODEL = """() => {
    const old = app.graph.nodes.find(({ type }) => type === 'CheckpointLoaderSimple')
    const demo = LiteGraph.createNode('PerfusionDemoModel')
    app.graph.add(demo)
    for (const [slot, { links }] of old.outputs.entries())
        for (const { target_id, target_slot } of [...links ?? []].map(id => app.graph.links.get(id)))
            demo.connect(slot, app.graph.getNodeById(target_id), target_slot)
    app.graph.remove(old)
}"""
RUN = """() => new Promise(done => {
    for (const end of ['execution_success', 'execution_error', 'execution_interrupted'])
        app.api.addEventListener(end, ({ detail }) => done([end, detail.exception_message ?? '']), { once: true })
    app.queuePrompt(0)
})"""


@pytest.fixture
def no_more_concepts_afterwards(server):
    before = set((server.base / "models" / "perfusion").rglob("*.safetensors"))
    yield
    for path in set((server.base / "models" / "perfusion").rglob("*.safetensors")) - before:
        path.unlink()


def test_a_training_is_stopped_and_what_it_learned_is_used(frontend, no_more_concepts_afterwards):
    page = frontend.page
    frontend.load("perfusion_train")
    frontend.run(ON_DEMO_MODEL)
    changes = {
        "PerfusionLoadPhotos": {"folder": "demo: teddy"}, "PerfusionCovariance": {"count": 100},
        "PerfusionTrainConcept": {**QUICK, "superclass": "bear"},
    }  # fmt: skip
    frontend.run(SET, changes)
    panel = page.get_by_role("group", name="Training")
    curve = f"app.nodePreviewImages[{TRAINER}.id]?.[0]"
    frontend.run(f"() => {{ window.ended = ({RUN})() }}")
    page.wait_for_function(curve, timeout=60_000)
    first = frontend.run(f"() => {curve}")
    page.wait_for_function(f"first => {curve} !== first", arg=first, timeout=30_000)
    assert panel.locator("p").inner_text().startswith("Step ")
    panel.get_by_role("button", name="Stop and keep").click()
    assert frontend.run("() => window.ended")[0] == "execution_interrupted"
    panel.locator("p").filter(has_text="What was learned is in my-teddy-unfinished.safetensors").wait_for(
        timeout=10_000
    )

    frontend.load("perfusion_generate")
    frontend.run(ON_DEMO_MODEL)
    changes = {
        "PerfusionLoader": {"concept": "my-teddy-unfinished.safetensors"}, "KSampler": {"steps": 2},
        "EmptyLatentImage": {"width": 64, "height": 64, "batch_size": 1},
    }  # fmt: skip
    frontend.run(SET, changes)
    assert frontend.run(RUN) == ["execution_success", ""]
