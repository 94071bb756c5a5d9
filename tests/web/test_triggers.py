"""Which triggers the graph teaches: those of nodes that run, loaded or just trained; of two alike only one counts."""

import pytest
from steps import GROUNDS, LOADER, button, each_renderer, in_workflow, look, panel, says

BYPASSED, MUTED = 4, 2
TRAINER = "app.graph.nodes.find(node => node.type === 'PerfusionTrainConcept')"


def set_mode(page, node, mode):
    """As the host's commands do it, which then look for changes."""
    page.evaluate(f"mode => {{ {node}.mode = mode }}", mode)
    look(page)


def offered_for(page, typed):
    box = page.locator("textarea:visible").first
    box.fill("")
    box.press_sequentially(typed)
    return page.get_by_role("listbox", name="Triggers").get_by_role("option")


def grounds(page, text, expected):
    page.wait_for_function(
        f"([text, expected]) => JSON.stringify(({GROUNDS})(text)) === expected", arg=[text, expected]
    )


@each_renderer
@pytest.mark.parametrize("mode", [BYPASSED, MUTED], ids=["bypassed", "muted"])
def test_a_loader_that_does_not_run_is_dim_and_its_trigger_plain(page, mode):
    text = "a photo of a <my-teddy> on the beach"
    grounds(page, text, "[[13,10]]")
    set_mode(page, LOADER, mode)
    page.locator(".perfusion-panel.perfusion-off").wait_for()
    grounds(page, text, "[]")
    assert offered_for(page, "a te").count() == 0
    set_mode(page, LOADER, 0)
    page.locator(".perfusion-panel:not(.perfusion-off)").wait_for()
    offered_for(page, "a te").filter(has_text="<my-teddy> teddy").wait_for()


def test_a_loader_in_a_subgraph_that_does_not_run_teaches_nothing(page):
    page.evaluate(
        f"""() => {{
            const subgraph = app.graph.convertToSubgraph(new Set([{LOADER}])).node
            subgraph.mode = {BYPASSED}
        }}"""
    )
    look(page)
    assert offered_for(page, "a te").count() == 0


ADD_LOADER = f"""file => {{
    const first = {LOADER}, second = LiteGraph.createNode('PerfusionLoader')
    app.graph.add(second)
    second.title = 'The other'
    second.widgets[0].value = file
    for (const slot of [0, 1])
        for (const id of [...first.outputs[slot].links]) {{
            const {{ target_id, target_slot }} = app.graph.links.get(id)
            second.connect(slot, app.graph.getNodeById(target_id), target_slot)
        }}
    for (const slot of [0, 1]) first.connect(slot, second, slot)
}}"""


@each_renderer
def test_of_two_loaders_in_a_row_with_one_trigger_the_first_says_that_it_does_nothing(page):
    page.evaluate(ADD_LOADER, "my-teddy.safetensors")
    look(page)
    told = "The other further on has <my-teddy> too, and only its settings count."
    says(panel(page).get_by_role("alert"), told)
    assert panel(page).get_by_role("alert").filter(has_text="has <my-teddy> too").count() == 1
    set_mode(page, "app.graph.nodes.find(node => node.title === 'The other')", BYPASSED)
    panel(page).get_by_role("alert").filter(has_text="has <my-teddy> too").wait_for(state="detached")


def test_two_loaders_side_by_side_both_count(page):
    page.evaluate(ADD_LOADER, "my-teddy.safetensors")
    look(page)
    says(panel(page).get_by_role("alert"), "has <my-teddy> too")
    page.evaluate(
        f"""() => {{
            const sampler = LiteGraph.createNode('KSampler')
            app.graph.add(sampler)
            {LOADER}.connect(0, sampler, 0)
        }}"""
    )
    look(page)
    panel(page).get_by_role("alert").filter(has_text="has <my-teddy> too").wait_for(state="detached")


def test_two_loaders_of_different_concepts_are_fine(page):
    page.evaluate(ADD_LOADER, "vases/amphora.safetensors")
    look(page)
    assert panel(page).count() == 2
    assert not any(alert.is_visible() for alert in panel(page).get_by_role("alert").all())


@in_workflow("1 Quick start")
@each_renderer
def test_a_trigger_that_is_trained_and_applied_is_suggested_and_blue(page):
    page.evaluate(
        """() => {
            const [trainer, demo, prompt] = ['PerfusionTrainConcept', 'PerfusionDemoModel', 'CLIPTextEncode'].map(
                type => app.graph.nodes.find(node => node.type === type))
            for (const node of app.graph.nodes.filter(({ type }) => type === 'PerfusionLoader' || type === 'PerfusionApply'))
                app.graph.remove(node)
            const apply = LiteGraph.createNode('PerfusionApply')
            app.graph.add(apply)
            for (const type of ['MODEL', 'CLIP'])
                demo.connect(demo.outputs.findIndex(out => out.type === type), apply, apply.inputs.findIndex(one => one.type === type))
            trainer.connect(trainer.outputs.findIndex(out => out.type === 'PERFUSION_CONCEPTS'), apply, 2)
            trainer.widgets.find(({ name }) => name === 'trigger').value = '<ours>'
            trainer.widgets.find(({ name }) => name === 'superclass').value = 'bear'
            apply.connect(1, prompt, 0)
        }"""  # noqa: E501
    )
    look(page)
    own = page.get_by_role("group", name="Triggers", exact=True)
    button(own, "<ours>").wait_for()
    says(own.get_by_role("status"), "<ours> is in no prompt yet.")
    offered_for(page, "a be").filter(has_text="<ours> bear").wait_for()
    page.locator("textarea:visible").first.press("Enter")
    grounds(page, "a <ours>", "[[2,6]]")
    look(page)
    own.get_by_role("status").filter(has_text="no prompt").wait_for(state="detached")
    set_mode(page, TRAINER, MUTED)
    grounds(page, "a <ours>", "[]")


@each_renderer
def test_apply_has_a_panel_only_when_it_has_triggers(page):
    page.evaluate(
        """() => {
            for (const node of [...app.graph.nodes]) app.graph.remove(node)
            const apply = LiteGraph.createNode('PerfusionApply')
            apply.pos = [500, 0]
            app.graph.add(apply)
        }"""
    )
    own = page.locator(".perfusion-panel[aria-label=Triggers]")
    own.wait_for(state="attached")
    assert not own.is_visible()
    page.evaluate(
        """() => {
            const concept = LiteGraph.createNode('PerfusionLoadConcept')
            concept.pos = [500, 300]
            app.graph.add(concept)
            concept.connect(0, app.graph.nodes.find(({ type }) => type === 'PerfusionApply'), 2)
            concept.widgets.find(({ name }) => name === 'concept').value = 'my-teddy.safetensors'
        }"""
    )
    look(page)
    own.wait_for()
