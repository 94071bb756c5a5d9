"""ComfyUI's real frontend in a headless Chromium, for the tests in tests/web and the pictures of the workflows.

Used as `with Server(base) as server, open_frontend(server.address) as frontend: frontend.load("2 Train SD1.5")`.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import APIResponse, Browser, ConsoleMessage, Page, Request, sync_playwright

from comfyui import REPO
from sample_concepts import PHOTOS, write_sample_concepts

# Nothing but 127.0.0.1 can be reached, whatever the page tries
OPTIONS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-default-apps", "--disable-sync", "--no-first-run", "--mute-audio",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--js-flags=--min-semi-space-size=32 --initial-old-space-size=500",  # memory in place of collecting garbage
]  # fmt: skip
SETTINGS = {
    "Comfy.TutorialCompleted": True, "Comfy.VueNodes.Enabled": False, "Comfy.RightSidePanel.IsOpen": False,
    "Comfy.Locale": "en",
}  # fmt: skip
# Twenty frames a second in place of sixty: the frontend asks for them all the time, and the processor draws them
FRAMES = """(() => {
    const draw = window.requestAnimationFrame.bind(window), waiting = new Set()
    let last = 0
    window.requestAnimationFrame = callback => {
        const id = ++last
        waiting.add(id)
        setTimeout(() => draw(now => waiting.delete(id) && callback(now)), 50 - performance.now() % 50)
        return id
    }
    window.cancelAnimationFrame = id => waiting.delete(id)
})()"""
SIZE = {"width": 1280, "height": 800}
START_LIMIT = 240_000  # milliseconds; a busy machine takes two minutes
LIMIT = 120_000  # of every other wait
# The address names the graph that is shown. Until it does, older frontends may go back to the one that it still names
NAVIGATED = "() => !location.hash || location.hash === `#${app.canvas.graph.id}`"


def workflow(name: str) -> dict[str, Any]:
    return json.loads((REPO / "workflows" / f"{name}.json").read_text(encoding="utf-8"))


def add_stand_ins(base: Path) -> None:
    """What workflows/ choose, so that their lists offer it; loading these models would fail."""
    for name in (
        "models/checkpoints/v1-5-pruned-emaonly-fp16.safetensors", "models/checkpoints/sd_xl_base_1.0.safetensors",
        "models/loras/my-style.safetensors", "models/diffusion_models/anima-base-v1.0.safetensors",
        "models/text_encoders/qwen_3_06b_base.safetensors", "models/vae/qwen_image_vae.safetensors",
        "models/controlnet/control_v11p_sd15_canny_fp16.safetensors",
    ):  # fmt: skip
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).touch()
    for name in ("example.png", "my_photos/1.png"):
        (base / "input" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(PHOTOS / "teddy" / "1.png", base / "input" / name)
    write_sample_concepts(base / "models" / "perfusion")


class Frontend:
    """A page with the frontend in it, what its console complained of, and all that it asked for.

    Playwright holds this thread's event loop: Server.request cannot be used meanwhile, ``get`` can.
    """

    page: Page

    def __init__(self, browser: Browser, address: str) -> None:
        self.browser, self.address = browser, address
        self.complaints: list[str] = []
        self.requests: list[str] = []

    def open(self) -> None:
        """Opens a new page in a new profile in place of the one there is, with the settings of the beginning."""
        for context in self.browser.contexts:
            context.close()
        self.page = self.browser.new_page(viewport=SIZE, device_scale_factor=1, reduced_motion="reduce")
        self.page.add_init_script(FRAMES)
        self.page.set_default_timeout(LIMIT)
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.complaints.append(error.stack or error.message))
        self.page.on("request", self._note)
        self.page.request.post(f"{self.address}/settings", data=SETTINGS)
        self.page.goto(self.address, timeout=START_LIMIT)
        self.page.wait_for_function("window.app?.vueAppReady && app.graph?.nodes.length", timeout=START_LIMIT)

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in ("warning", "error"):
            self.complaints.append(f"{message.text} ({message.location['url']})")

    def _note(self, request: Request) -> None:
        self.requests.append(f"{request.url} {(request.post_data_buffer or b'').decode(errors='replace')}")

    def get(self, path: str) -> APIResponse:
        return self.page.request.get(self.address + path)

    def run(self, script: str, argument: Any = None) -> Any:
        """What a JavaScript function returns in the page."""
        return self.page.evaluate(script, argument)

    def set(self, setting: str, value: Any) -> None:
        script = "({ get, set }, id, value) => get(id) === value || set(id, value)"  # to set it draws much anew
        self.run(f"([id, value]) => ({script})(app.extensionManager.setting, id, value)", [setting, value])

    def load(self, name: str) -> None:
        """Loads a workflow of this repository as the template browser does, which also fits the view to it.

        Those that were open are closed.
        """
        self.run(
            """async ([workflow, name]) => {
                await app.loadGraphData(workflow, true, true, name, { openSource: 'template' })
                for (let frame = 0; frame < 3; frame++) await new Promise(requestAnimationFrame)
            }""",
            [workflow(name), name],
        )
        self.close_others()

    def close_others(self) -> None:
        """Closes all workflows but the one that is shown."""
        self.page.wait_for_function(NAVIGATED)
        self.run(
            """async () => {
                const { workflow } = app.extensionManager
                for (const open of [...workflow.openWorkflows])
                    if (open.path !== workflow.activeWorkflow.path) await workflow.closeWorkflow(open)
            }"""
        )


@contextmanager
def open_frontend(address: str) -> Iterator[Frontend]:
    """The frontend that a server at ``address`` gives out, in the classic renderer, with its start-up work done."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=OPTIONS)
        frontend = Frontend(browser, address)
        frontend.open()
        yield frontend
        browser.close()
