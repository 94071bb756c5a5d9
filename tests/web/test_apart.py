"""Several concepts in one picture, run on the demo model: what was found is shown, and boxes say where a concept is."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from steps import LIST_AGAIN, RUN, SET, each_renderer

KEEP_APART, REGIONS, BOXES = "PerfusionKeepApart", "PerfusionRegions", "CreateBoundingBoxes"
QUICK = {"KSampler": {"steps": 2}, "EmptyLatentImage": {"batch_size": 1}}
OPEN = {"PerfusionLoader": {"beta": 0}}  # gates of concepts that nobody trained: every word is the trigger in part
# Takes concepts of the same names that fit the demo model
FITTING = """() => {
    for (const node of app.graph.nodes.filter(({ type }) => type === 'PerfusionLoader'))
        node.widgets[0].value = `demo/${node.widgets[0].value}`
}"""
NODE = "app.graph.nodes.find(node => node.type === {!r})"
SHOWN = f"""() => {{
    const node = {NODE.format(REGIONS)}
    const vue = document.querySelectorAll(`[data-node-id='${{node.id}}'] img`)
    return [...(LiteGraph.vueNodesMode ? vue : node.imgs ?? [])].some(({{ naturalWidth }}) => naturalWidth > 0)
}}"""
CELL = 256  # pixels of the overlay from one picture to the next
# A node with one box in it, connected to Keep Apart
DRAW = f"""([x, y, width, height, desc]) => {{
    const boxes = LiteGraph.createNode('{BOXES}'), apart = {NODE.format(KEEP_APART)}
    app.graph.add(boxes)
    const values = {{ width: 1024, height: 1024, editor_state: [{{ x, y, width, height, metadata: {{ desc }} }}] }}
    for (const [name, value] of Object.entries(values))
        boxes.widgets.find(widget => widget.name === name).value = value
    const [from, to] = [boxes.outputs, apart.inputs]
    return Boolean(boxes.connect(
        from.findIndex(({{ name }}) => name === 'elements'), apart, to.findIndex(({{ name }}) => name === 'boxes')))
}}"""


@pytest.fixture
def workflow():
    return "perfusion_several_characters"


@pytest.fixture(scope="module")
def fitting(opened, server):
    """The files of those concepts."""
    from comfyui import REPO
    from sample_concepts import write_sample_concepts

    with safe_open(REPO / "nodes" / "demo_model.safetensors", "pt") as file:
        values = [name for name in file.keys() if name.endswith(".attn2.to_v.weight")]  # noqa: SIM118
        layers = {name[len("unet.") : -len(".to_v.weight")]: file.get_slice(name).get_shape()[0] for name in values}
    folder = server.base / "models" / "perfusion" / "demo"
    write_sample_concepts(folder, layers, "demo")
    opened.run(LIST_AGAIN)
    yield
    shutil.rmtree(folder, ignore_errors=True)  # after a failure it is gone
    opened.run(LIST_AGAIN)


@pytest.fixture
def template(fitting, page):
    """The page with it, set to be quick."""
    page.evaluate(FITTING)
    page.evaluate(SET, {**QUICK, **OPEN})
    return page


def overlay(frontend):
    """The picture that Regions shows, in grey: 0 is black, 255 white."""
    (image,) = frontend.run(f"() => app.nodeOutputs[{NODE.format(REGIONS)}.id].images")
    answer = frontend.get("/view?" + "&".join(f"{key}={value}" for key, value in image.items()))
    return np.asarray(Image.open(io.BytesIO(answer.body())).convert("L"), dtype=float)


@each_renderer
def test_the_template_runs_and_shows_where_each_concept_is(frontend, template):
    assert template.evaluate(RUN) == ["execution_success", ""]
    template.evaluate(f"() => app.canvas.centerOnNode({NODE.format(REGIONS)})")  # what is not in view is not drawn
    template.wait_for_function(SHOWN)


def test_a_box_of_the_host_is_where_its_concept_is(frontend, object_info, template):
    if BOXES not in object_info:
        pytest.skip("This ComfyUI has no Create Bounding Boxes.")
    assert template.evaluate(DRAW, [512, 0, 512, 1024, "<my-teddy>"])
    assert template.evaluate(RUN) == ["execution_success", ""]
    left, right = np.split(overlay(frontend)[-CELL:, -2 * CELL : -CELL], 2, axis=1)  # the first concept's, of two
    assert right.mean() - left.mean() > 80  # bright is where it is
