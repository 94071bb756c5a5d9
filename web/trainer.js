// On the trainer: the time left, and a button that stops it and keeps what was learned.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { html } from "./element.js";
import { nodeOfRun, widgetOf } from "./graph.js";
import { addPanel } from "./panel.js";
import { concepts, listFilesAgain } from "./server.js";
import { spoken, text } from "./texts.js";
import { duration, secondsLeft } from "./time.js";

class TrainerPanel {
  #node;
  #status = html("p", {}, text("Not running."));
  #bar = html("progress", { max: 1, value: 0, "aria-label": text("Steps of the training") });
  #stop = html("button", { type: "button", disabled: true, click: () => this.#stopRun() }, text("Stop and keep"));
  /** The prompt that is running here. @type {string | undefined} */
  #run;
  /** @type {import("./time.js").Report | undefined} */
  #first;

  /** @param {any} node */
  constructor(node) {
    this.#node = node;
    this.#stop.title = text("Ends the training now; what was learned so far stays in a file");
    addPanel(node, "perfusion_training", text("Training"), this.#status, this.#bar, this.#stop)();
  }

  /** @param {string} run the prompt's id; "" when it is not known yet */
  start(run) {
    this.#run = run;
    this.#first = undefined;
    this.#stop.disabled = false;
    this.#status.textContent = text("Preparing.");
    this.#bar.removeAttribute("value");
  }

  /**
   * @param {number} done
   * @param {number} total
   * @param {string} run
   */
  progress(done, total, run) {
    this.#run = run;
    if (this.#stop.disabled) return;
    const now = { done, at: Date.now() };
    this.#first ??= now;
    const left = secondsLeft(this.#first, now, total);
    this.#bar.max = total;
    this.#bar.value = done;
    this.#status.textContent = text("Step {done} of {total}", { done, total });
    if (left === undefined) return;
    const end = new Date(now.at + left * 1000).toLocaleTimeString(spoken(), { timeStyle: "short" });
    const values = { done, total, left: duration(left), end };
    this.#status.textContent = text("Step {done} of {total}, {left} left, until {end}", values);
  }

  async #stopRun() {
    this.#stop.disabled = true;
    this.#status.textContent = text("Stopping after this step.");
    await api.interrupt(this.#run);
  }

  /** @param {boolean} complete */
  async end(complete) {
    if (this.#run === undefined) return;
    this.#run = undefined;
    this.#stop.disabled = true;
    this.#bar.value = complete ? this.#bar.max : 0;
    this.#status.textContent = complete ? text("Done.") : text("Stopped.");
    if (complete) return;
    const before = new Set(concepts.list.map(({ file }) => file));
    await listFilesAgain();
    const trigger = widgetOf(this.#node, "trigger").value;
    const kept = concepts.list.find((concept) => concept.trigger === trigger && !before.has(concept.file));
    if (!kept) return;
    const { file } = kept;
    const where = text("Stopped. What was learned is in {file}; continue_from takes it up again.", { file });
    this.#status.textContent = where;
  }
}

/** @type {WeakMap<object, TrainerPanel>} by node */
const panels = new WeakMap();

/** @type {TrainerPanel | undefined} of the node that is running */
let running;

app.registerExtension({
  name: "perfusion.trainer",
  nodeCreated(node) {
    if (node.comfyClass === "PerfusionTrainConcept" && node.addDOMWidget) panels.set(node, new TrainerPanel(node));
  },
  setup() {
    let run = "";
    const end = (/** @type {boolean} */ complete) => {
      running?.end(complete);
      running = undefined;
    };
    const take = (/** @type {TrainerPanel | undefined} */ panel) => {
      if (panel === running) return;
      end(true);
      running = panel;
      panel?.start(run);
    };
    api.addEventListener("execution_start", ({ detail }) => (run = detail.prompt_id));
    api.addEventListener("executing", ({ detail }) => take(panels.get(nodeOfRun(detail))));
    api.addEventListener("progress", ({ detail: { node, prompt_id, value, max } }) => {
      const panel = panels.get(nodeOfRun(node));
      if (!panel) return;
      take(panel); // the page may have been loaded, or the graph made anew, since the node began
      panel.progress(value, max, prompt_id);
    });
    for (const stop of ["execution_interrupted", "execution_error"]) api.addEventListener(stop, () => end(false));
  },
});
