"""A page that was just opened: nothing is said against us, and it has seen nothing yet. conftest.py puts them first."""

import pytest
from steps import about_us, button, open_workflow, says
from test_trainer import status, tell


@pytest.fixture(scope="module", autouse=True)
def complaints(opened):
    """Of its start."""
    return list(opened.complaints)


@pytest.fixture
def workflow():
    return "2 Train SD1.5"


def test_the_page_opens_without_a_complaint(complaints):
    assert about_us(complaints) == []


def test_a_training_is_known_that_it_has_not_seen_begin_also_when_the_graph_is_made_anew(frontend, page, trainer):
    for done in (1, 2):
        open_workflow(frontend, "2 Train SD1.5")  # as undo does, and another tab
        tell(page, done=done)
        says(status(trainer), f"Step {done} of 4")
        assert button(trainer, "Stop and keep").is_enabled()


def test_a_sheet_of_ours_is_not_the_last_picture(frontend, page, concepts):
    open_workflow(frontend, "7 Sweep")
    output = {"images": [{"filename": "example.png", "subfolder": "", "type": "input"}]}
    script = """output => {
        for (const node of app.graph.nodes.filter(({ type }) => ['PerfusionSweep', 'SaveImage'].includes(type)))
            app.api.dispatchCustomEvent('executed', { node: String(node.id), display_node: String(node.id), output })
    }"""
    page.evaluate(script, output)
    button(concepts, "Edit amphora").click()
    assert button(concepts, "Take the last picture").is_disabled()
    button(concepts, "Cancel").click()
