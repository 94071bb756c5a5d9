"""What web/ adds to the graph: the Loader's panel, the list of concepts, help in prompts, the trainer's panel."""

import pytest
from steps import (
    DRAWN,
    GRID,
    GROUNDS,
    LIST_AGAIN,
    LOADER,
    TELL_WORDS,
    TOGGLE_SIDEBAR,
    button,
    choose,
    curve,
    each_renderer,
    in_workflow,
    look,
    names,
    panel,
    prompts,
    says,
    settings,
)


@each_renderer
def test_the_loader_shows_the_concept(page):
    button(panel(page), "<my-teddy>").wait_for()
    assert panel(page).locator(".perfusion-head p").inner_text().startswith("teddy · SD 1.x · ")
    picture = panel(page).get_by_role("img", name="What <my-teddy> looks like").element_handle()
    page.wait_for_function("picture => picture.naturalWidth > 0", arg=picture)
    assert not panel(page).get_by_role("alert").is_visible()
    assert not panel(page).get_by_role("status").is_visible()


def wait_until_nothing_is_cut(page):
    cut = """() => {
        const [inner, outer] = ['.perfusion-panel', '.perfusion-frame'].map(name => document.querySelector(name))
        return inner.scrollWidth > outer.clientWidth || inner.scrollHeight > outer.clientHeight + 1
    }"""
    page.wait_for_function(f"() => !({cut})()")


@each_renderer
def test_nothing_of_the_panel_is_cut(page):
    choose(page, concept="my-tiger.safetensors")
    wait_until_nothing_is_cut(page)


@each_renderer
def test_all_of_it_speaks_the_language_of_the_frontend(frontend, page):
    frontend.set("Comfy.Locale", "fr")
    try:
        button(panel(page), "Fidèle").wait_for()
        assert button(panel(page), "Insérer").get_attribute("title") == (
            "Mettre le mot déclencheur dans le prompt sélectionné"
        )
        assert panel(page).locator(".perfusion-legend").inner_text().split("\n")[-1] == "0,9\N{NO-BREAK SPACE}%"
        choose(page, concept="my-tiger.safetensors")
        says(panel(page).get_by_role("alert"), "Ne convient pas\N{NO-BREAK SPACE}: fait pour SDXL, mais")
        wait_until_nothing_is_cut(page)
        page.evaluate(TOGGLE_SIDEBAR)
        page.get_by_role("region", name="Concepts Perfusion").get_by_role("button", name="Supprimer amphora").wait_for()
        page.evaluate(TOGGLE_SIDEBAR)
    finally:
        frontend.set("Comfy.Locale", "en")
        button(panel(page), "Faithful").wait_for()


def test_a_slider_of_the_classic_canvas_moves_the_curve(page):
    before = curve(page)
    x, y = page.evaluate(
        f"""() => {{
            const node = {LOADER}, beta = node.widgets[2], canvas = app.canvas.canvas.getBoundingClientRect()
            const [left, top] = app.canvas.ds.convertOffsetToCanvas([node.pos[0] + 60, node.pos[1] + beta.y + 10])
            return [canvas.left + left, canvas.top + top]
        }}"""
    )
    page.mouse.click(x, y)
    assert settings(page)[2] < 0.3
    assert curve(page) != before


@pytest.mark.parametrize("renderer", ["vue"], indirect=True)
def test_a_slider_of_the_vue_nodes_moves_the_curve(page):
    before = curve(page)
    slider = page.get_by_role("slider").nth(1)  # behind strength
    slider.focus()
    slider.press("ArrowLeft")
    assert settings(page)[2] == pytest.approx(0.69)
    assert curve(page) != before


@each_renderer
def test_presets_set_the_sliders_and_are_known_again(page):
    choose(page, strength=0.9)
    button(panel(page), "Keep layout").click()
    assert settings(page)[1:] == [0.9, 0.5, 0.15, 1]
    assert button(panel(page), "Keep layout").get_attribute("aria-pressed") == "true"
    assert button(panel(page), "Balanced").get_attribute("aria-pressed") == "false"
    assert button(panel(page), "Balanced").get_attribute("title") == (
        "where to start (in the paper: local key lock): beta 0.7, temperature 0.15, key_lock 0"
    )


def test_a_leak_over_5_percent_is_red(page):
    choose(page, beta=0.4)
    leak = panel(page).locator(".perfusion-legend li").filter(has_text="other words")
    assert leak.locator("b").inner_text() == "6.5%"
    red = leak.locator("b").evaluate("element => getComputedStyle(element).color")
    choose(page, beta=0.7)
    assert leak.locator("b").inner_text() == "0.9%"
    assert leak.locator("b").evaluate("element => getComputedStyle(element).color") != red


def test_a_screen_reader_hears_what_the_curve_shows(page):
    heard = panel(page).locator("svg").get_attribute("aria-label")
    assert heard == "<my-teddy> 88%, teddy 17%, other words 0.9%"
    assert panel(page).locator("figcaption").inner_text() == "How much of <my-teddy> each word gets"


def test_a_concept_for_another_model_family_is_told(page):
    choose(page, concept="my-tiger.safetensors")
    says(panel(page).get_by_role("alert"), "made for SDXL, but v1-5-pruned-emaonly-fp16.safetensors looks like SD 1.x")


CONNECT = f"""([type, output]) => {{
    const [from, loader] = [LiteGraph.createNode(type), {LOADER}]
    from.pos = [loader.pos[0], loader.pos[1] + 700]
    app.graph.add(from)
    const slot = output ? from.outputs.findIndex(({{ name }}) => name === output) : 0
    from.connect(slot, loader, loader.inputs.findIndex(({{ name }}) => name === 'concept'))
    return String(from.id)
}}"""  # a new node gives the Loader its concept


@each_renderer
def test_a_concept_from_another_node_is_judged_when_it_is_known(page):
    misfit = panel(page).get_by_role("alert").filter(has_text="made for SDXL")
    choose(page, concept="my-tiger.safetensors")
    misfit.wait_for()
    node = page.evaluate(CONNECT, ["PerfusionSaveConcept", "concept"])
    look(page)
    misfit.wait_for(state="hidden")  # what will come is not the file of that name in the folder
    output = {"perfusion_saved": [{"file": "my-tiger.safetensors", "training": ""}]}
    tell = "([node, output]) => app.api.dispatchCustomEvent('executed', { node, display_node: node, output })"
    page.evaluate(tell, [node, output])
    misfit.wait_for()


def test_a_concept_from_a_primitive_is_known(page):
    page.evaluate(CONNECT, ["PrimitiveNode", ""])
    primitive = "app.graph.nodes.find(({ type }) => type === 'PrimitiveNode').widgets[0]"
    page.evaluate(f"() => {{ {primitive}.value = 'my-tiger.safetensors' }}")
    look(page)
    says(panel(page).get_by_role("alert"), "made for SDXL")


def test_a_file_that_is_gone_is_told(page):
    choose(page, concept="gone.safetensors")
    says(panel(page).get_by_role("alert"), "gone.safetensors is not in models/perfusion.")


@each_renderer
def test_a_trigger_in_no_prompt_is_told_until_it_is_inserted(page):
    choose(page, concept="vases/amphora.safetensors")
    says(panel(page).get_by_role("status"), "<amphora> is in no prompt yet.")
    button(panel(page), "Insert").click()
    says(panel(page).get_by_role("status"), "Select a CLIP Text Encode node first.")
    page.evaluate(
        """() => {
            app.canvas.deselectAll()
            app.canvas.selectNode(app.graph.nodes.find(node => node.title.startsWith('Prompt')))
        }"""
    )
    button(panel(page), "Insert").click()
    assert prompts(page)[0] == "a photo of a <my-teddy> on the beach <amphora>"


def test_the_trigger_can_be_copied(page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    button(panel(page), "<my-teddy>").click()
    says(panel(page).get_by_role("status"), "<my-teddy> is copied.")
    assert page.evaluate("() => navigator.clipboard.readText()") == "<my-teddy>"


@each_renderer
def test_triggers_are_suggested_while_typing(page):
    box = page.locator("textarea:visible").filter(has_text="").first
    box.fill("")
    box.press_sequentially("a big te")
    offered = page.get_by_role("listbox", name="Triggers").get_by_role("option")
    assert offered.all_inner_texts() == ["<my-teddy> teddy"]
    assert box.get_attribute("aria-activedescendant") == offered.first.get_attribute("id")
    box.press("Enter")
    assert box.input_value() == "a big <my-teddy>"
    assert "a big <my-teddy>" in prompts(page)
    assert not offered.first.is_visible()


def test_escape_closes_the_suggestions_and_enter_is_a_new_line_again(page):
    box = page.locator("textarea:visible").first
    box.fill("")
    box.press_sequentially("<m")
    box.press("Escape")
    box.press("Enter")
    assert box.input_value() == "<m\n"


def test_suggestions_close_when_the_caret_leaves_their_word(page):
    box = page.locator("textarea:visible").first
    box.fill("a red car, ")
    box.press_sequentially("te")
    offered = page.get_by_role("listbox", name="Triggers")
    offered.wait_for()
    box.press("Home")
    offered.wait_for(state="hidden")
    box.press("Enter")
    assert box.input_value() == "\na red car, te"


@each_renderer
def test_triggers_in_prompts_stand_on_a_coloured_ground(page):
    def grounds(text, expected):
        """Where they begin and how long they are, in letters."""
        page.wait_for_function(
            f"([text, expected]) => JSON.stringify(({GROUNDS})(text)) === expected", arg=[text, expected]
        )

    box = page.locator("textarea:visible").first
    box.fill("a <my-teddy>")
    grounds("a <my-teddy>", "[[2,10]]")
    box.press_sequentially("! <MY-teddy>")
    grounds("a <my-teddy>! <MY-teddy>", "[[2,10],[14,10]]")
    choose(page, concept="vases/amphora.safetensors")
    grounds("a <my-teddy>! <MY-teddy>", "[]")
    page.evaluate(
        """() => {
            const prompts = app.graph.nodes.filter(node => node.type === 'CLIPTextEncode').map(node => node.widgets[0])
            prompts.find(({ value }) => value.includes('!')).value = 'an <amphora>'
        }"""
    )
    grounds("an <amphora>", "[[3,9]]")


@each_renderer
def test_the_text_of_a_subgraph_around_a_prompt_is_a_prompt(page):
    page.evaluate(
        """() => {
            const prompt = app.graph.nodes.find(node => node.type === 'CLIPTextEncode')
            app.canvas.select(app.graph.convertToSubgraph(new Set([prompt])).node)
        }"""
    )
    page.wait_for_function(
        "app.graph.nodes.find(({ subgraph }) => subgraph).widgets.some(({ type }) => type === 'customtext')"
    )
    page.evaluate(DRAWN)  # with a text area for it
    box = next(box for box in page.locator("textarea:visible").all() if box.input_value().startswith("a photo"))
    box.fill("")
    box.press_sequentially("a big te")
    box.press("Enter")
    assert box.input_value() == "a big <my-teddy>"
    page.wait_for_function(f"text => JSON.stringify(({GROUNDS})(text)) === '[[6,10]]'", arg="a big <my-teddy>")
    box.fill("")
    button(panel(page), "Insert").click()
    assert box.input_value() == "<my-teddy>"


@each_renderer
def test_the_words_of_the_encoded_prompt_are_marked_on_the_curve(page):
    words = [["on", 0.41], ["unbelievablylonglonglongword", 0.4], ["beach", 0.39]]
    page.evaluate(TELL_WORDS, {"my-teddy.safetensors": words, "my-tiger.safetensors": [["cat", 0.5]]})
    picture = panel(page).locator("svg")
    heard = picture.get_attribute("aria-label")
    assert heard.endswith(", on 13%, unbelievablylonglonglongword 12%, beach 11%, other words 0.9%")
    boxes = [label.bounding_box() for label in picture.locator("text").all()]
    outer = picture.bounding_box()
    for at, one in enumerate(boxes):
        assert outer["x"] <= one["x"] and one["x"] + one["width"] <= outer["x"] + outer["width"]
        assert outer["y"] - 1 <= one["y"] and one["y"] + one["height"] <= outer["y"] + outer["height"] + 1
        for other in boxes[:at]:
            assert (
                one["x"] >= other["x"] + other["width"] or other["x"] >= one["x"] + one["width"]
                or abs(one["y"] - other["y"]) > 9
            )  # fmt: skip
    choose(page, beta=0.4)
    assert "on 52%" in picture.get_attribute("aria-label")
    page.evaluate(TELL_WORDS, {"my-teddy.safetensors": [], "my-tiger.safetensors": []})


def test_concepts_are_searched_and_sorted(concepts):
    assert sorted(names(concepts)) == ["amphora", "my-teddy", "my-tiger"]
    concepts.get_by_role("searchbox").fill("sd 1 clay")
    assert names(concepts) == ["amphora"]
    concepts.get_by_role("searchbox").fill("my")
    concepts.get_by_role("combobox", name="Sort by").select_option("name")
    assert names(concepts) == ["my-teddy", "my-tiger"]


def test_reveal_shows_where_the_file_lies_and_copies_it(server, page, concepts):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    button(concepts, "Reveal amphora").press("Enter")
    path = str(server.base / "models" / "perfusion" / "vases" / "amphora.safetensors")
    says(concepts.get_by_role("status"), f"{path} Copied.")
    assert page.evaluate("() => navigator.clipboard.readText()") == path


def test_an_edit_is_written_and_the_loader_shows_it(page, concepts):
    for trigger in ("<our-teddy>", "<my-teddy>"):
        button(concepts, "Edit my-teddy").click()
        concepts.get_by_label("Trigger").fill(trigger)
        button(concepts, "Save").click()
        button(panel(page), trigger).wait_for()


def test_the_server_says_why_an_edit_cannot_be(concepts):
    button(concepts, "Edit amphora").click()
    concepts.get_by_label("Trigger").fill("two words")
    button(concepts, "Save").click()
    says(concepts.get_by_role("alert"), "contains a space")
    concepts.get_by_label("Trigger").press("Escape")
    assert "amphora" in names(concepts)


def test_what_is_written_in_one_form_is_kept_whatever_else_the_list_does(page, concepts):
    trigger = concepts.get_by_label("Trigger")
    button(concepts, "Edit amphora").click()
    trigger.fill("<clay>")
    button(concepts, "Edit my-teddy").click()
    assert trigger.count() == 2
    button(concepts.get_by_title("my-teddy.safetensors"), "Cancel").click()
    concepts.get_by_role("searchbox").fill("sd 1 clay")
    assert concepts.get_by_role("listitem").count() == 1
    assert trigger.input_value() == "<clay>"
    trigger.focus()
    page.evaluate(LIST_AGAIN)
    page.keyboard.type("ish")
    assert trigger.input_value() == "<clay>ish"
    button(concepts, "Cancel").click()
    assert names(concepts) == ["amphora"]


def test_a_deleted_concept_comes_back(frontend, concepts):
    button(concepts, "Delete amphora").click()
    undo = button(concepts, "Undo deleting amphora")
    undo.wait_for()
    assert sorted(names(concepts)) == ["my-teddy", "my-tiger"]
    assert "vases/amphora.safetensors" not in frontend.get("/perfusion/concepts").text()
    undo.press("Enter")
    button(concepts, "Delete amphora").wait_for()
    assert "vases/amphora.safetensors" in frontend.get("/perfusion/concepts").text()


def links_of_loader(page, id):
    """(type, from, to) of its links of models and text encoders."""
    script = """id => [...app.graph.links.values()].filter(link => ['MODEL', 'CLIP'].includes(link.type))
        .map(link => [link.type, app.graph.getNodeById(link.origin_id), app.graph.getNodeById(link.target_id)])
        .filter(link => link.slice(1).some(node => String(node.id) === id))
        .map(([type, from, to]) => [type, from.type, to.type])"""
    return sorted(page.evaluate(script, id))


def newest_loader(page):
    found = "app.graph.nodes.filter(node => node.type === 'PerfusionLoader').sort((a, b) => a.id - b.id).at(-1)"
    return page.evaluate(
        f"() => {{ const node = {found}; return [String(node.id), node.widgets[0].value, [...node.pos]] }}"
    )


def test_add_puts_a_wired_loader_into_the_graph_and_it_can_be_undone(page, concepts):
    many = page.evaluate("() => app.graph.nodes.length")
    button(concepts, "Add amphora").click()
    id, chosen, _ = newest_loader(page)
    assert chosen == "vases/amphora.safetensors"
    assert links_of_loader(page, id) == [
        ["CLIP", "CheckpointLoaderSimple", "PerfusionLoader"], ["CLIP", "PerfusionLoader", "PerfusionLoader"],
        ["MODEL", "CheckpointLoaderSimple", "PerfusionLoader"], ["MODEL", "PerfusionLoader", "PerfusionLoader"],
    ]  # fmt: skip
    page.evaluate("() => app.extensionManager.command.execute('Comfy.Undo')")
    page.wait_for_function(f"app.graph.nodes.length === {many}")


@each_renderer
def test_a_dragged_concept_becomes_a_loader_where_it_is_dropped(page, concepts):
    card = concepts.get_by_role("listitem").filter(has_text="my-tiger")
    card.drag_to(page.locator("#graph-canvas"), target_position={"x": 700, "y": 650}, force=True)
    id, chosen, (x, y) = newest_loader(page)
    assert chosen == "my-tiger.safetensors"
    assert len(links_of_loader(page, id)) == 4
    there = page.evaluate("place => app.canvas.ds.convertOffsetToCanvas(place)", [x, y])
    assert there == pytest.approx([700, 650], abs=5)


def paint(page, **changes):
    """As if PerfusionSweep had run."""
    output = {
        "images": [{"filename": "example.png", "subfolder": "", "type": "input"}], "animated": [False],
        "perfusion_sweep": [{**GRID, **changes}],
    }  # fmt: skip
    script = """output => {
        const node = app.graph.nodes.find(node => node.type === 'PerfusionSweep')
        app.api.dispatchCustomEvent('executed', { node: String(node.id), display_node: String(node.id), output })
    }"""
    page.evaluate(script, output)


def used(page):
    """beta and temperature of the node that loads the concept for the sweep."""
    found = "app.graph.nodes.find(node => node.type === 'PerfusionLoadConcept')"
    return page.evaluate(f"() => {found}.widgets.slice(2, 4).map(({{ value }}) => value)")


@in_workflow("7 Sweep")
@each_renderer
def test_a_picture_of_a_sweep_sets_the_loader_and_it_can_be_undone(page):
    paint(page)
    grid = page.get_by_role("group", name="Grid")
    cell = button(grid, "beta 0.6, temperature 0.3")
    assert cell.get_attribute("aria-pressed") == "false"
    assert grid.get_by_role("button").count() == 5
    cell.press("Enter")
    assert used(page) == [0.6, 0.3]
    says(grid.get_by_role("status"), "Set in Perfusion Load Concept: beta 0.6 and temperature 0.3.")
    assert cell.get_attribute("aria-pressed") == "true"
    page.evaluate("() => app.extensionManager.command.execute('Comfy.Undo')")
    page.wait_for_function(
        "app.graph.nodes.find(({ type }) => type === 'PerfusionLoadConcept').widgets[2].value === 0.7"
    )
    assert used(page) == [0.7, 0.15]
    button(grid, "beta 0.7, temperature 0.1").click()
    assert used(page) == [0.7, 0.1]


@in_workflow("7 Sweep")
def test_the_grid_is_shown_once(page):
    paint(page)
    page.evaluate(
        """output => {
            const other = LiteGraph.createNode('PreviewImage')
            other.pos = [...app.graph.nodes.find(({ type }) => type === 'PerfusionSweep').pos]  // it is in view
            app.graph.add(other)
            const node = String(other.id)
            app.api.dispatchCustomEvent('executed', { node, display_node: node, output })
        }""",
        {"images": [{"filename": "example.png", "subfolder": "", "type": "input"}]},
    )
    hosts = "app.graph.nodes.filter(({ widgets }) => widgets?.some(({ name }) => name === '$$canvas-image-preview'))"
    page.wait_for_function(f"{hosts}.some(({{ type }}) => type === 'PreviewImage')")  # the sweep's would be there, too
    assert page.evaluate(f"() => {hosts}.map(({{ type }}) => type)") == ["PreviewImage"]


@in_workflow("7 Sweep")
def test_a_sweep_over_concepts_sets_the_one_of_the_picture(page):
    rows = {"kind": "concept", "values": ["<my-teddy>", "<amphora>"]}
    paint(page, rows=rows, triggers=rows["values"])
    grid = page.get_by_role("group", name="Grid")
    button(grid, "beta 0.5, <my-teddy>").click()
    assert used(page) == [0.5, 0.15]
    button(grid, "beta 0.6, <amphora>").click()
    assert used(page) == [0.5, 0.15]
    says(grid.get_by_role("status"), "Nothing is set: no node here loads <amphora>.")


def test_the_panel_is_in_no_workflow_and_no_prompt(page):
    saved, prompt = page.evaluate(
        f"""async () => [
            {LOADER}.serialize().widgets_values.length, (await app.graphToPrompt()).output[{LOADER}.id].inputs]"""
    )
    assert saved == 10
    assert "perfusion_concept" not in prompt


def test_without_our_routes_the_plain_widgets_remain(frontend, page):
    frontend.complaints.clear()
    page.route("**/perfusion/**", lambda route: route.fulfill(status=404, body="404: Not Found"))
    try:
        page.evaluate(LIST_AGAIN)
        button(panel(page), "<my-teddy>").wait_for(state="hidden")
        button(panel(page), "Editable").click()
        assert settings(page) == ["my-teddy.safetensors", 1, 0.75, 0.15, 0]
        assert not panel(page).get_by_role("alert").is_visible()
    finally:
        page.unroute("**/perfusion/**")
        page.evaluate(LIST_AGAIN)
    assert [line for line in frontend.complaints if "404 (Not Found)" not in line] == []
