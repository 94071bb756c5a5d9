"""The sidebar's list of concepts: what of them it shows, what Add does, and how they are described and renamed."""

import time

import pytest
from steps import (
    LIST_AGAIN,
    LOADER,
    SET,
    button,
    choose,
    each_renderer,
    look,
    names,
    panel,
    says,
    wait_until_settled,
)

LOADERS = "app.graph.nodes.filter(({ type }) => type === 'PerfusionLoader')"


@pytest.fixture
def switches(page, concepts):
    """The two switches, off before and after."""
    found = {name: concepts.get_by_role("switch", name=name) for name in ("Only for this model", "Hide unfinished")}
    yield found
    for switch in found.values():
        switch.set_checked(False)


@pytest.fixture
def unfinished(server, page):
    """A concept of a training that was cut short."""
    folder = server.base / "models" / "perfusion"
    path = folder / "my-teddy-unfinished-2.safetensors"
    path.write_bytes((folder / "my-teddy.safetensors").read_bytes())
    page.evaluate(LIST_AGAIN)
    yield path
    path.unlink()
    page.evaluate(LIST_AGAIN)


def wait_for_names(concepts, *expected):
    concepts.page.wait_for_function(
        "([shown, names]) => [...shown.querySelectorAll('li b')].map(name => name.innerText).sort().join() === names",
        arg=[concepts.element_handle(), ",".join(sorted(expected))],
    )


def test_only_what_fits_the_models_of_the_graph_is_shown(page, concepts, switches):
    switches["Only for this model"].set_checked(True)
    wait_for_names(concepts, "amphora", "my-teddy")
    says(concepts.get_by_role("status"), "2 of 3")
    page.evaluate(SET, {"CheckpointLoaderSimple": {"ckpt_name": "sd_xl_base_1.0.safetensors"}})
    look(page)
    wait_for_names(concepts, "my-tiger")
    page.evaluate(SET, {"CheckpointLoaderSimple": {"ckpt_name": "of-unknown-kind.safetensors"}})
    look(page)
    wait_for_names(concepts, "amphora", "my-teddy", "my-tiger")


def test_unfinished_trainings_are_marked_and_can_be_hidden(unfinished, concepts, switches):
    card = concepts.get_by_title(unfinished.name)
    assert card.locator(".perfusion-muted").first.inner_text().endswith(" · unfinished")
    switches["Hide unfinished"].set_checked(True)
    wait_for_names(concepts, "amphora", "my-teddy", "my-tiger")


def test_the_list_follows_the_language_however_late_its_translations_come(frontend, page, concepts):
    page.route("**/i18n", lambda route: (time.sleep(1), route.continue_()))
    try:
        frontend.set("Comfy.Locale", "fr")
        french = page.get_by_role("region", name="Concepts Perfusion")
        french.get_by_role("button", name="Supprimer amphora").wait_for()
        assert french.get_by_role("button", name="Delete amphora").count() == 0
    finally:
        page.unroute("**/i18n")
        frontend.set("Comfy.Locale", "en")
        concepts.get_by_role("button", name="Delete amphora").wait_for()


def test_the_switches_stay_as_they_were_set(page, concepts, switches):
    switches["Hide unfinished"].set_checked(True)
    assert page.evaluate("() => localStorage.getItem('Perfusion.finished')") == "true"


def test_tags_are_written_shown_and_searched(concepts):
    button(concepts, "Edit amphora").click()
    concepts.get_by_label("Tags").fill("clay, pots")
    button(concepts, "Save").click()
    button(concepts, "pots").click()
    assert concepts.get_by_role("searchbox").input_value() == "pots"
    assert names(concepts) == ["amphora"]
    button(concepts, "Edit amphora").click()
    assert concepts.get_by_label("Tags").input_value() == "clay, pots"
    concepts.get_by_label("Tags").fill("")
    button(concepts, "Save").click()
    button(concepts, "pots").wait_for(state="detached")


@each_renderer
def test_a_new_name_is_the_files_too_and_the_loader_follows_and_it_can_be_undone(server, page, concepts):
    folder = server.base / "models" / "perfusion" / "vases"
    choose(page, concept="vases/amphora.safetensors")
    before = (folder / "amphora.safetensors").read_bytes()
    button(concepts, "Edit amphora").click()
    concepts.get_by_label("Name").fill("greek vase")
    button(concepts, "Save").click()
    says(concepts.get_by_role("status"), "amphora is now greek vase.")
    assert page.evaluate(f"() => {LOADER}.widgets[0].value") == "vases/greek vase.safetensors"
    assert page.evaluate(f"() => {LOADER}.widgets[0].options.values").count("vases/greek vase.safetensors") == 1
    assert [path.name for path in folder.iterdir()] == ["greek vase.safetensors"]
    assert not panel(page).get_by_role("alert").is_visible()
    button(concepts, "Undo renaming greek vase").click()
    button(concepts, "Edit amphora").wait_for()
    page.wait_for_function(f"{LOADER}.widgets[0].value === 'vases/amphora.safetensors'")
    assert (folder / "amphora.safetensors").read_bytes() == before


def test_a_name_that_is_taken_is_refused_with_the_reason(concepts):
    button(concepts, "Edit my-tiger").click()
    concepts.get_by_label("Name").fill("my-teddy")
    button(concepts, "Save").click()
    says(concepts.get_by_role("alert"), "There is a file my-teddy.safetensors already.")
    button(concepts, "Cancel").click()
    assert "my-tiger" in names(concepts)


def test_another_concepts_trigger_is_told_before_it_is_taken(concepts):
    button(concepts, "Edit amphora").click()
    told = concepts.get_by_role("alert").filter(has_text="my-teddy has this trigger too")
    assert not told.is_visible()
    concepts.get_by_label("Trigger").fill("<MY-teddy>")
    told.wait_for()
    assert button(concepts, "Save all the same").is_visible()
    concepts.get_by_label("Trigger").fill("<amphora>")
    told.wait_for(state="hidden")
    button(concepts, "Cancel").click()


def test_the_last_picture_becomes_the_thumbnail(server, page, concepts):
    path = server.base / "models" / "perfusion" / "vases" / "amphora.safetensors"
    before = path.read_bytes()
    output = {"images": [{"filename": "example.png", "subfolder": "", "type": "input"}]}
    script = """output => {
        const node = app.graph.nodes.find(({ type }) => type === 'SaveImage')
        app.api.dispatchCustomEvent('executed', { node: String(node.id), display_node: String(node.id), output })
    }"""
    page.evaluate(script, output)
    card = concepts.get_by_title("vases/amphora.safetensors")
    assert card.locator("img").count() == 0
    button(concepts, "Edit amphora").click()
    button(concepts, "Take the last picture").click()
    concepts.get_by_role("img", name="The last picture").wait_for()
    button(concepts, "Save").click()
    picture = concepts.get_by_role("img", name="What <amphora> looks like").element_handle()
    page.wait_for_function("picture => picture.naturalWidth === 256", arg=picture)
    path.write_bytes(before)
    page.evaluate(LIST_AGAIN)


@each_renderer
def test_add_lays_the_loader_over_nothing(page, concepts):
    button(concepts, "Add amphora").click()
    page.wait_for_function(f"{LOADERS}.length === 2")
    wait_until_settled(page)
    over = page.evaluate(
        f"""() => {{
            const [x, y, width, height] = {LOADERS}.sort((a, b) => a.id - b.id).at(-1).boundingRect
            const others = app.graph.nodes.filter(node => node !== {LOADERS}.sort((a, b) => a.id - b.id).at(-1))
            const over = others.filter(({{ boundingRect: [u, v, across, down] }}) =>
                u < x + width && x < u + across && v < y + height && y < v + down)
            return over.map(({{ type }}) => type)
        }}"""
    )
    assert over == []


def test_add_shows_the_loader_that_is_there(page, concepts):
    page.evaluate("() => { app.canvas.deselectAll(); app.canvas.ds.offset = [5000, 5000] }")
    page.wait_for_function("app.canvas.visible_area[0] === -5000")  # the canvas has drawn what is there
    button(concepts, "Add my-teddy").click()
    says(concepts.get_by_role("status"), "my-teddy is in the graph already: it is selected.")
    selected, inside, many = page.evaluate(
        f"""() => {{
            app.canvas.ds.computeVisibleArea(app.canvas.viewport)
            const [left, top, width, height] = app.canvas.visible_area, [x, y] = {LOADER}.pos
            return [Object.values(app.canvas.selected_nodes).map(({{ type }}) => type),
                left < x && x < left + width && top < y && y < top + height, {LOADERS}.length]
        }}"""
    )
    assert (selected, inside, many) == (["PerfusionLoader"], True, 1)
