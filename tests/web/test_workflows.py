"""The pack in the real frontend: workflows come up as they were saved, and what users read is there."""

import io
import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from steps import TELL_WORDS, about_us, wait_until_settled

WORKFLOWS = sorted(path.stem for path in (Path(__file__).resolve().parents[2] / "workflows").glob("*.json"))
PACK = "ComfyUI-Perfusion"
BLUEPRINT = "Train a concept (Perfusion)"
OF_PREVIEW = {"preview", "previewMode", "preview_text", "preview_markdown"}  # some frontends save these
ERRORS = "[role=dialog], [role=alertdialog], [data-testid=error-overlay]"
each_workflow = pytest.mark.parametrize("name", WORKFLOWS)

SHOWN_NODES = """() => app.graph.nodes.map(node => ({
    id: Number(node.id), type: node.type, broken: Boolean(node.has_errors),
    registered: node.type in LiteGraph.registered_node_types,
    area: [...node.boundingRect],  // x, y, width, height with the title
    widgets: (node.widgets ?? []).filter(widget => widget.serialize !== false)
        .map(({ name, value, type, options }) => ({ name, value, choices: type === 'combo' ? options.values : null })),
}))"""
SHOWN_LINKS = """() => [...app.graph.links.values()].map(link => [
    Number(link.origin_id), link.origin_slot, Number(link.target_id),
    app.graph.getNodeById(link.target_id).inputs[link.target_slot].name, link.type,
])"""


def saved_links(workflow):
    """(from node, from output, to node, name of its input, type); slot numbers of inputs vary with the frontend."""
    inputs = {node["id"]: node.get("inputs", []) for node in workflow["nodes"]}
    return [[start, slot, end, inputs[end][to]["name"], kind] for _, start, slot, end, to, kind in workflow["links"]]


@pytest.fixture(scope="module")
def seen():
    return {}


@pytest.fixture
def show(frontend, seen):
    """show(name): what the page has of a workflow, and what it says against it; loaded once for all tests that look."""

    def load(name):
        if name not in seen:
            frontend.complaints.clear()
            frontend.load(name)
            seen[name] = SimpleNamespace(
                nodes=frontend.run(SHOWN_NODES),
                links=frontend.run(SHOWN_LINKS),
                prompt=frontend.run("async () => (await app.graphToPrompt()).output"),
                errors=frontend.page.locator(ERRORS).count(),
                complaints=about_us(frontend.complaints),
            )
        return seen[name]

    return load


@pytest.fixture
def shown(show, name):
    return show(name)


@each_workflow
def test_workflow_loads_without_a_complaint(shown, name):
    assert [node["type"] for node in shown.nodes if node["broken"] or not node["registered"]] == []
    assert shown.errors == 0
    assert shown.complaints == []


@each_workflow
def test_workflow_has_its_nodes_and_links(shown, name):
    from browser import workflow

    saved = workflow(name)
    assert {node["id"]: node["type"] for node in shown.nodes} == {node["id"]: node["type"] for node in saved["nodes"]}
    assert sorted(shown.links) == sorted(saved_links(saved))


@each_workflow
def test_widgets_show_the_values_of_the_file(shown, object_info, name):
    from browser import workflow
    from comfyui import to_prompt

    saved = workflow(name)
    values = {node["id"]: node.get("widgets_values", []) for node in saved["nodes"]}
    by_name = {int(id): node["inputs"] for id, node in to_prompt(saved, object_info).items()}
    for node in shown.nodes:
        widgets = {widget["name"]: widget["value"] for widget in node["widgets"] if widget["name"] not in OF_PREVIEW}
        named = {key: value for key, value in by_name.get(node["id"], {}).items() if key in widgets}
        assert list(widgets.values()) == values[node["id"]], node["type"]
        linked = {key for key, value in named.items() if isinstance(value, list)}
        assert all(named[key] == widgets[key] for key in named.keys() - linked), node["type"]
        # fixed: what follows a seed that comes fixed; text: of a note; upload: Load Image's button
        unnamed = {"control_after_generate", "fixed", "text", "upload"}
        assert set(widgets) - set(named) <= unnamed, node["type"]
        for widget in node["widgets"]:
            assert widget["choices"] is None or widget["value"] in widget["choices"], (node["type"], widget)


@each_workflow
def test_frontend_makes_the_same_prompt_as_our_scripts(shown, object_info, name):
    from browser import workflow
    from comfyui import to_prompt

    def bare(prompt):
        inputs = {
            id: {key: value for key, value in node["inputs"].items() if key not in OF_PREVIEW}
            for id, node in prompt.items()
        }
        return {id: (node["class_type"], inputs[id]) for id, node in prompt.items()}

    assert bare(shown.prompt) == bare(to_prompt(workflow(name), object_info))


def assert_apart(nodes):
    for one, other in itertools.combinations(nodes, 2):
        (x, y, width, height), (u, v, across, down) = one["area"], other["area"]
        apart = x + width <= u or u + across <= x or y + height <= v or v + down <= y
        assert apart, f"{one['type']} ({one['id']}) lies over {other['type']} ({other['id']})"


@each_workflow
def test_nodes_do_not_overlap(shown, name):
    assert_apart(shown.nodes)


@each_workflow
@pytest.mark.parametrize("renderer", ["vue"], indirect=True)
def test_vue_nodes_do_not_overlap(frontend, name):
    """Nor when they have run, and loaders show the words that are most similar."""
    concepts = "my-teddy.safetensors", "my-tiger.safetensors", "vases/amphora.safetensors"
    frontend.run(TELL_WORDS, {concept: [["beach", 0.4], ["meadow", 0.39], ["on", 0.38]] for concept in concepts})
    frontend.load(name)
    drawn = "app.graph.nodes.every(({ id }) => document.querySelector(`[data-node-id='${id}']`))"
    frontend.page.wait_for_function(drawn)
    wait_until_settled(frontend.page)
    assert_apart(frontend.run(SHOWN_NODES))
    frontend.run(TELL_WORDS, {concept: [] for concept in concepts})


def test_template_browser_shows_our_workflows(frontend):
    assert sorted(frontend.get("/api/workflow_templates").json()[PACK]) == WORKFLOWS
    frontend.run("() => app.graph.clear()")  # what is waited for below is not there yet
    frontend.run("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    dialog = frontend.page.get_by_role("dialog")
    dialog.get_by_role("button", name=PACK).click()
    for name in WORKFLOWS:
        card = dialog.get_by_test_id(f"template-workflow-{name}")
        card.scroll_into_view_if_needed()
        picture = card.locator("img").first.element_handle()
        frontend.page.wait_for_function("picture => picture.naturalWidth > 0", arg=picture)
    shown = dialog.locator("[data-testid^='template-workflow-']").evaluate_all(
        "cards => cards.map(card => card.dataset)"
    )
    assert [card["testid"].removeprefix("template-workflow-") for card in shown] == WORKFLOWS  # in this order
    # not with the mouse: the host may make its cards anew between the button's going down and up
    dialog.get_by_test_id("template-workflow-2 Train SD1.5").dispatch_event("click")
    frontend.page.wait_for_function("app.graph.nodes.some(node => node.type === 'PerfusionTrainConcept')")
    dialog.wait_for(state="hidden")


@each_workflow
def test_templates_have_pictures(frontend, name):
    answer = frontend.get(f"/api/workflow_templates/{PACK}/{name}.jpg")
    assert answer.status == 200
    assert answer.headers["content-type"] == "image/jpeg"
    assert len(answer.body()) < 60_000
    assert Image.open(io.BytesIO(answer.body())).format == "JPEG"


def test_the_blueprint_is_found_and_is_a_whole_training(frontend, our_nodes):
    frontend.run("() => app.graph.clear()")
    frontend.run("() => app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    box = frontend.page.locator("[role=combobox]:focus")
    box.fill(BLUEPRINT)
    found = frontend.page.locator(f"[id='{box.get_attribute('aria-controls')}']")
    found.get_by_role("option").filter(has_text=BLUEPRINT).click()  # Enter takes what lies under the pointer
    found.wait_for(state="hidden")
    frontend.page.wait_for_function(f"app.graph.nodes.some(node => node.title === '{BLUEPRINT}')")
    frontend.page.mouse.click(600, 400)  # it hangs on the pointer until then
    frontend.page.wait_for_function("app.graph.nodes.every(node => !node.flags.ghost)")
    shown = frontend.run(
        """() => app.graph.nodes[0].widgets.filter(({ name }) => name !== "perfusion_training")
            .map(({ name, value }) => [name, value])"""
    )
    prompt = frontend.run("async () => (await app.graphToPrompt()).output")
    nodes = {node["class_type"]: (id, node["inputs"]) for id, node in prompt.items()}
    (photos, _), (training, inputs), (_, saved) = (
        nodes[name] for name in ("PerfusionLoadPhotos", "PerfusionTrainConcept", "PerfusionSaveConcept")
    )
    assert shown == [
        ["folder", "demo: teddy"], ["trigger", "<my-teddy>"], ["superclass", "bear"], ["steps", 400],
        ["filename", ""],
    ]  # fmt: skip
    assert {key: value for key, value in inputs.items() if isinstance(value, list)} == {
        "images": [photos, 0],
        "masks": [photos, 1],
        "captions": [photos, 2],
    }
    assert saved["concept"] == [training, 0]
    for group in ("required", "optional"):  # the other widgets are as in a new node
        for key, (kind, options) in our_nodes["PerfusionTrainConcept"]["input"][group].items():
            default = options["options"][0] if kind == "COMBO" else options.get("default")
            assert inputs.get(key, default) == default or isinstance(inputs[key], list), key


def test_every_node_has_a_help_page_with_a_picture(frontend, our_nodes):
    assert our_nodes
    for name, info in our_nodes.items():
        answer = frontend.get(f"/extensions/{PACK}/docs/{name}.md")
        assert answer.status == 200, name
        assert answer.text().startswith(f"# {info['display_name']}\n"), name
        assert f"]({name}.jpg)" in answer.text(), name
        picture = frontend.get(f"/extensions/{PACK}/docs/{name}.jpg")
        assert picture.status == 200 and len(picture.body()) < 60_000, name


def test_info_button_shows_the_help_page(frontend):
    frontend.load("2 Train SD1.5")
    frontend.run("() => app.canvas.selectNode(app.graph.nodes.find(node => node.type === 'PerfusionTrainConcept'))")
    frontend.page.get_by_role("button", name="Node Info").click()  # as README says
    panel = frontend.page.get_by_test_id("properties-panel")
    panel.locator("h1", has_text="Perfusion Train Concept").wait_for()
    picture = panel.locator("img[src$='/PerfusionTrainConcept.jpg']").element_handle()
    frontend.page.wait_for_function("picture => picture.naturalWidth > 0", arg=picture)
    frontend.page.get_by_test_id("info-button").click()


def test_every_input_is_explained_and_few_are_shown(our_nodes):
    for name, info in our_nodes.items():
        inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
        options = {key: rest[0] if rest else {} for key, (_, *rest) in inputs.items()}
        assert [key for key, option in options.items() if not option.get("tooltip")] == [], name
        assert sum(not option.get("advanced") for option in options.values()) <= 9, name


def test_the_classic_canvas_folds_rare_inputs_until_asked(frontend):
    frontend.load("2 Train SD1.5")
    folded, unfolded = frontend.run(
        """() => {
            const node = app.graph.nodes.find(node => node.type === 'PerfusionTrainConcept')
            const saved = node.widgets.filter(widget => widget.serialize !== false)
            const visible = () => saved.filter(widget => node.isWidgetVisible(widget)).map(widget => widget.name)
            const folded = visible()
            node.toggleAdvanced()
            return [folded, visible()]
        }"""
    )
    assert folded[:4] == ["trigger", "superclass", "steps", "seed"]  # the fifth says what becomes of the seed
    assert (len(folded), len(unfolded)) == (5, 26)


def test_nothing_of_ours_leaves_this_machine(frontend, show):
    said = [complaint for name in WORKFLOWS for complaint in show(name).complaints]
    home = (frontend.address, frontend.address.replace("http", "ws", 1), "data:", "blob:")
    outside = [request for request in frontend.requests if not request.startswith(home)]
    blocked = [complaint for complaint in said + frontend.complaints if "Content Security Policy" in complaint]
    assert about_us(outside + blocked) == []


def test_server_starts_without_a_warning_from_us(server):
    lines = server.log.read_text(errors="replace").partition("got prompt")[0].splitlines()
    suspects = [line for line in lines if any(word in line.lower() for word in ("warning", "error", "failed"))]
    assert [line for line in suspects if "Perfusion" in line] == []  # in lower case it names only the cache folder
    assert any("custom_nodes" in line and PACK in line for line in lines), "the host did not load the pack"
