// On Perfusion Apply: the triggers of the concepts that come to it, and whether they are in a prompt.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { html } from "./element.js";
import { allNodes, isRunning } from "./graph.js";
import { addPanel } from "./panel.js";
import { concepts } from "./server.js";
import { text } from "./texts.js";
import { TriggerLine } from "./trigger.js";
import { taughtBy, teachersOf } from "./triggers.js";

class ApplyPanel {
  #node;
  #rows = html("div", { class: "perfusion-triggers" });
  #line = new TriggerLine(() => this.#fit());
  #shown = "";
  #fit;

  /** @param {any} node */
  constructor(node) {
    this.#node = node;
    this.#fit = addPanel(node, "perfusion_triggers", text("Triggers"), this.#rows, this.#line.element);
  }

  update() {
    const triggers = this.#triggers();
    const on = isRunning(this.#node);
    if (triggers.join() !== this.#shown) {
      this.#shown = triggers.join();
      this.#rows.replaceChildren(...triggers.map((trigger) => this.#line.row(trigger)));
    }
    this.#rows.parentElement?.classList.toggle("perfusion-off", !on);
    this.#line.update(on ? triggers : []);
    this.#fit();
  }

  /** @returns {string[]} */
  #triggers() {
    const slot = this.#node.inputs.findIndex(({ type }) => type === "PERFUSION_CONCEPTS");
    const source = this.#node.getInputNode(slot);
    const found = source ? teachersOf(source).flatMap(taughtBy) : [];
    return [...new Set(found.map(({ trigger }) => trigger))];
  }
}

/** @type {WeakMap<object, ApplyPanel>} by node */
const panels = new WeakMap();

function updateAll() {
  for (const node of allNodes()) panels.get(node)?.update();
}

app.registerExtension({
  name: "perfusion.apply",
  nodeCreated(node) {
    if (node.comfyClass === "PerfusionApply" && node.addDOMWidget) panels.set(node, new ApplyPanel(node));
  },
  afterConfigureGraph: updateAll,
  setup() {
    concepts.addEventListener("change", updateAll);
    api.addEventListener("graphChanged", updateAll);
  },
});
