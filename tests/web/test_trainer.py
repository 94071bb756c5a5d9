"""The trainer's panel: presets and estimate before, time and samples meanwhile, and what to do with the outcome."""

import pytest
from steps import LIST_AGAIN, ON_DEMO_MODEL, RUN, SET, button, each_renderer, open_workflow, prompts, says

from perfusion_core import load_concept, save_concept

SEND = "([name, detail]) => app.api.dispatchCustomEvent(name, detail)"
TRAINER = "app.graph.nodes.find(({ type }) => type === 'PerfusionTrainConcept')"
# What is opened next, as the host got it, in window.opened
OPENED = """() => {
    const load = app.loadGraphData
    app.loadGraphData = (workflow, ...others) => {
        window.opened = JSON.stringify(workflow)
        app.loadGraphData = load
        return load.call(app, workflow, ...others)
    }
}"""
PICTURE = {"filename": "example.png", "subfolder": "", "type": "input"}
SAMPLES = "a {} on grass\na {} on sand"
TRAINING_LIMIT = 600_000  # milliseconds; a busy machine takes minutes to the first steps
QUICK = {"steps": 4, "checkpoint_every": 2, "batch_size": 1, "accumulation": 1, "previews": SAMPLES}


@pytest.fixture
def workflow():
    return "2 Train SD1.5"


def course(page, **changes):
    """What the server says of a training after 2 of 4 steps."""
    rows = [{"step": step, "images": [PICTURE, PICTURE]} for step in (0, 2)]
    return {
        "node": page.evaluate(f"() => String({TRAINER}.id)"), "training": "some-key", "size": 64, "done": 2, "total": 4,
        "left": 100, "stopping": False, "ended": False, "curve": [0.3, 0.2], "rows": rows, "used": None, "chosen": None,
        "warnings": {}, **changes,
    }  # fmt: skip


def tell(page, **changes):
    page.evaluate(SEND, ["perfusion.training", course(page, **changes)])


def ended(page, file="my-teddy.safetensors", **changes):
    """As if the training had ended, and what it learned had been saved."""
    page.evaluate(SEND, ["executing", course(page)["node"]])
    over = course(page, ended=True, used=2, **changes)
    page.evaluate(SEND, ["executed", {"node": over["node"], "output": {"perfusion_training": [over]}}])
    save = page.evaluate("() => String(app.graph.nodes.find(({ type }) => type === 'PerfusionSaveConcept').id)")
    saved = {"perfusion_saved": [{"file": file, "training": "some-key"}]}
    page.evaluate(SEND, ["executed", {"node": save, "output": saved}])


@pytest.fixture
def asked(page):
    """What the page asks of our routes from now on, which answer that it is done; no prompt is queued."""
    asked = []

    def answer(route):
        asked.append((route.request.url.rsplit("/", 1)[1], route.request.post_data_json))
        route.fulfill(json={})

    for name in ("stop", "continue", "choose"):
        page.route(f"**/perfusion/{name}", answer)
    page.evaluate(
        "() => { window.queued = 0; window.queue = app.queuePrompt; app.queuePrompt = () => window.queued++ }"
    )
    yield asked
    page.evaluate("() => { app.queuePrompt = window.queue }")
    page.unroute_all(behavior="ignoreErrors")


def status(trainer):
    return trainer.locator("p[role=status]")


def pick(row):
    """Clicks it, also where the node is longer than the window."""
    row.dispatch_event("click")


def test_time_left_and_samples_are_shown_while_it_runs(page, trainer):
    assert button(trainer, "Stop and keep").is_disabled()
    page.evaluate(SEND, ["execution_start", {"prompt_id": "a-run"}])
    page.evaluate(SEND, ["executing", course(page)["node"]])
    says(status(trainer), "Preparing.")
    tell(page, done=0, left=None, curve=[], rows=course(page)["rows"][:1])
    says(status(trainer), "Step 0 of 4")
    assert trainer.locator(".perfusion-samples img").count() == 2  # before the first step
    tell(page)
    says(status(trainer), "Step 2 of 4, 2 min left, until ")
    assert trainer.get_by_role("progressbar").evaluate("bar => bar.value / bar.max") == 0.5
    rows = trainer.locator(".perfusion-samples-row")
    assert [words.split("\n")[0] for words in rows.all_inner_texts()] == ["Before the training", "Step 2"]
    pick(rows.first)
    says(trainer.locator(".perfusion-look"), "Before the training")
    tell(page, done=3)  # what the user looks at stays
    says(trainer.locator(".perfusion-look"), "Before the training")


def test_stop_asks_for_an_end_and_not_for_an_interrupt(frontend, page, trainer, asked):
    tell(page)
    frontend.requests.clear()
    button(trainer, "Stop and keep").click()
    says(status(trainer), "Stopping after this step.")
    assert asked == [("stop", {"node": course(page)["node"]})]
    assert not any("/interrupt" in request for request in frontend.requests)
    tell(page, stopping=True)
    says(status(trainer), "Stopping after this step.")
    assert button(trainer, "Stop and keep").is_disabled()


def test_after_a_stop_it_can_go_on(page, trainer, asked):
    ended(page)
    says(status(trainer), "Stopped after 2 of 4 steps. Step 2 is the best.")
    button(trainer, "Continue").click()
    page.wait_for_function("window.queued === 1")
    assert asked == [("continue", {"training": "some-key"})]


def test_a_finished_one_needs_not_go_on(page, trainer):
    ended(page, done=4)
    says(status(trainer), "4 steps are done. Step 2 is the best.")
    assert not button(trainer, "Continue").is_visible()


@each_renderer
def test_a_click_on_a_row_takes_that_checkpoint_and_runs_the_graph(page, trainer, asked):
    rows = [{"step": step, "images": [PICTURE]} for step in (0, 2, 4)]
    ended(page, done=4, rows=rows)
    shown = trainer.locator(".perfusion-samples-row")
    pressed = shown.evaluate_all("rows => rows.map(row => row.getAttribute('aria-pressed'))")
    assert pressed == ["false", "true", "false"]
    pick(shown.nth(0))  # the untrained one is only looked at
    pick(shown.nth(2))
    page.wait_for_function("window.queued === 1")
    assert asked == [("choose", {"training": "some-key", "step": "4"})]


def test_what_the_server_has_against_it_is_said(page, trainer):
    ended(page)
    button(trainer, "Continue").click()
    says(trainer.get_by_role("alert"), "not remembered any more")


def test_an_error_stands_in_the_panel(page, trainer):
    tell(page)
    page.evaluate(SEND, ["execution_error", {"exception_message": "Switch on low_memory: it learns alike."}])
    says(trainer.get_by_role("alert"), "Switch on low_memory: it learns alike.")
    assert "left" not in status(trainer).inner_text()


def test_warnings_are_shown_while_it_runs_and_before(page, trainer):
    tell(page, warnings={"few_photos": 2, "without_mask": 1})
    lines = trainer.get_by_role("listitem")
    assert lines.all_inner_texts() == [
        "Photos: 2. With 3 to 10 the concept gets better.",
        "Photos without a mask: 1. Their background is learned, too.",
    ]
    ended(page, warnings={"unchanged": 1})
    says(lines, "Hardly anything changed.")


def test_the_photos_of_a_folder_are_looked_at_before_it_starts(page, trainer):
    """The one in my_photos has no mask."""
    says(trainer.get_by_role("listitem"), "Photos: 1.")
    page.evaluate(SET, {"PerfusionLoadPhotos": {"folder": "demo: teddy"}})
    page.evaluate("() => app.api.dispatchCustomEvent('graphChanged')")
    trainer.get_by_role("listitem").first.wait_for(state="detached")


@each_renderer
def test_presets_set_the_inputs_and_the_estimate_follows(page, trainer):
    values = f"() => Object.fromEntries({TRAINER}.widgets.map(({{ name, value }}) => [name, value]))"
    for name in ("Quick look", "Normal", "Best", "Low memory"):
        assert button(trainer, name).is_visible()
    assert button(trainer, "Normal").get_attribute("aria-pressed") == "true"
    estimate = trainer.get_by_text("of memory")
    estimate.wait_for()
    before = estimate.inner_text()
    button(trainer, "Quick look").click()
    assert page.evaluate(values)["steps"] == 100 and page.evaluate(values)["accumulation"] == 1
    trainer.get_by_text("of memory").filter(has_not_text=before).wait_for()
    button(trainer, "Low memory").click()
    assert page.evaluate(values)["low_memory"] is True and page.evaluate(values)["steps"] == 400
    assert button(trainer, "Quick look").get_attribute("aria-pressed") == "false"

    page.evaluate(ON_DEMO_MODEL)
    button(trainer, "Normal").click()
    assert page.evaluate(values)["accumulation"] == 1
    assert button(trainer, "Normal").get_attribute("aria-pressed") == "true"


def test_nothing_is_asked_about_an_unknown_model(frontend, page, trainer):
    estimate = trainer.get_by_text("of memory")
    estimate.wait_for()
    frontend.requests.clear()
    page.evaluate("() => app.graph.remove(app.graph.nodes.find(({ type }) => type === 'CheckpointLoaderSimple'))")
    page.evaluate("() => app.api.dispatchCustomEvent('graphChanged')")
    estimate.wait_for(state="hidden")
    assert not any("/perfusion/estimate" in request for request in frontend.requests)


def test_use_it_opens_the_workflow_with_concept_model_and_prompt(frontend, page, trainer):
    page.evaluate(ON_DEMO_MODEL)
    page.evaluate(SET, {"PerfusionTrainConcept": {"previews": "a photo of {} on snow\na {}"}})
    page.evaluate(OPENED)
    ended(page)
    button(trainer, "Use it").click()
    page.wait_for_function("app.graph.nodes.find(({ type }) => type === 'EmptyLatentImage')?.widgets[0].value === 64")
    found = dict(
        page.evaluate("() => app.graph.nodes.map(node => [node.type, node.widgets?.map(({ value }) => value)])")
    )
    assert found["PerfusionLoader"][0] == "my-teddy.safetensors"
    assert found["EmptyLatentImage"][:2] == [64, 64]
    assert "a photo of <my-teddy> on snow" in prompts(page)
    assert "CheckpointLoaderSimple" not in found
    assert "CheckpointLoaderSimple" not in page.evaluate("() => window.opened")  # or the host misses its file
    links = page.evaluate("() => [...app.graph.links.values()].filter(link => link.type === 'VAE').length")
    assert links == 1


def test_use_it_opens_the_workflow_of_the_concepts_base_model(frontend, page, trainer):
    open_workflow(frontend, "4 Train SDXL")
    page.evaluate(SET, {"CheckpointLoaderSimple": {"ckpt_name": "my-own-xl.safetensors"}})
    ended(page, "my-tiger.safetensors", size=896)
    button(trainer, "Use it").click()
    page.wait_for_function("app.graph.nodes.find(({ type }) => type === 'EmptyLatentImage')?.widgets[0].value === 896")
    found = dict(
        page.evaluate("() => app.graph.nodes.map(node => [node.type, node.widgets?.map(({ value }) => value)])")
    )
    assert found["PerfusionLoader"][0] == "my-tiger.safetensors"
    assert found["SaveImage"] == ["perfusion/concept_sdxl"]
    assert found["CheckpointLoaderSimple"] == ["my-own-xl.safetensors"]
    assert found["EmptyLatentImage"][:2] == [896, 896]
    assert prompts(page) == ["a photo of <my-tiger>", "blurry, deformed"]


@pytest.fixture
def fox(server, page):
    """The file of a concept for Anima."""
    folder = server.base / "models" / "perfusion"
    teddy, path = load_concept(folder / "my-teddy.safetensors"), folder / "my-fox.safetensors"
    save_concept(teddy.replace(name="my-fox", trigger="<my-fox>", base_model="anima"), path)
    page.evaluate(LIST_AGAIN)
    yield path.name
    path.unlink()
    page.evaluate(LIST_AGAIN)


def test_use_it_takes_the_text_encoder_and_the_autoencoder_that_have_loaders_of_their_own(frontend, page, trainer, fox):
    open_workflow(frontend, "perfusion_anima_train")
    chosen = {
        "UNETLoader": {"unet_name": "anima-of-mine.safetensors"}, "VAELoader": {"vae_name": "vae-of-mine.safetensors"},
        "CLIPLoader": {"clip_name": "qwen-of-mine.safetensors"},
    }  # fmt: skip
    page.evaluate(SET, chosen)
    page.evaluate(OPENED)
    ended(page, fox, size=768)
    pick(button(trainer, "Use it"))
    page.wait_for_function("app.graph.nodes.find(({ type }) => type === 'EmptyLatentImage')?.widgets[0].value === 768")
    found = dict(
        page.evaluate("() => app.graph.nodes.map(node => [node.type, node.widgets?.map(({ value }) => value)])")
    )
    assert found["PerfusionLoader"][0] == "my-fox.safetensors"
    assert found["EmptyLatentImage"][:2] == [768, 768]
    assert {type: found[type][0] for type in chosen} == {
        type: name for type, values in chosen.items() for name in values.values()
    }
    assert prompts(page) == ["a photo of <my-fox>", "worst quality, low quality, blurry, jpeg artifacts"]
    # before it is opened, or the host misses the template's files
    assert all(name in page.evaluate("() => window.opened") for values in chosen.values() for name in values.values())
    inputs = page.evaluate("async () => Object.values((await app.graphToPrompt()).output)")
    sources = {node["class_type"]: node["inputs"] for node in inputs}
    assert all(isinstance(sources["PerfusionLoader"][name], list) for name in ("model", "clip"))
    assert isinstance(sources["VAEDecode"]["vae"], list)


@pytest.mark.timeout(1800)
@each_renderer
def test_a_real_training_is_stopped_chosen_from_continued_and_paints(frontend, page, trainer, no_new_files):
    page.evaluate(ON_DEMO_MODEL)
    long = {"superclass": "bear", **QUICK, "steps": 5000, "resolution": 64, "previews": "a {} on grass"}
    changes = {
        "PerfusionCovariance": {"count": 100}, "PerfusionTrainConcept": long,
        "PerfusionSaveConcept": {"filename": "stopped"},
    }  # fmt: skip
    page.evaluate(SET, changes)
    page.evaluate(f"() => {{ window.ended = ({RUN})() }}")
    rows = trainer.locator(".perfusion-samples-row")
    rows.nth(1).wait_for(timeout=TRAINING_LIMIT)
    button(trainer, "Stop and keep").click()
    assert page.evaluate("() => window.ended") == ["execution_success", ""]  # Save has run, too
    says(status(trainer), "Stopped after")
    files = "() => app.nodeOutputs[app.graph.nodes.find(({ type }) => type === 'PerfusionSaveConcept').id].text"
    assert "stopped.safetensors" in str(page.evaluate(files))
    assert page.locator("[data-testid^=node-body] > img").count() == 0  # no picture of the host's beside ours

    done = status(trainer).inner_text().split()[2]
    page.evaluate(SET, {"PerfusionTrainConcept": {"steps": int(done) + 2}})
    with page.expect_request("**/prompt"):
        button(trainer, "Continue").click()
    status(trainer).filter(has_text=f"{int(done) + 2} steps are done.").wait_for(timeout=TRAINING_LIMIT)
    count = rows.count()
    with page.expect_request("**/prompt"):
        pick(rows.nth(1))
    says(status(trainer), "You chose step 2.")
    assert rows.count() == count  # nothing was trained


def test_a_superclass_that_is_no_word_of_the_model_is_named(page, trainer):
    page.evaluate(SET, {"PerfusionTrainConcept": {"superclass": "schnauzerl"}})
    page.evaluate("() => app.api.dispatchCustomEvent('graphChanged')")
    says(trainer.get_by_role("listitem"), "The model does not know “schnauzerl” as one word")
