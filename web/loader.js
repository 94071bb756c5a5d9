// On the nodes that load a concept: what it is, what its settings do, presets, and whether it fits.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { drawGate } from "./chart.js";
import { family, summary } from "./concepts.js";
import { html } from "./element.js";
import { presetLike, presetsOf } from "./gate.js";
import { LOADERS, allNodes, connectedFamily, isRunning, setWidgets, valueOf, widgetOf } from "./graph.js";
import { paintAll } from "./highlight.js";
import { addPanel } from "./panel.js";
import { conceptOf, concepts, fileOf, thumbnail } from "./server.js";
import { text } from "./texts.js";
import { TriggerLine } from "./trigger.js";
import { replacerOf } from "./triggers.js";

const SETTINGS = ["beta", "temperature", "key_lock"];

/** The most similar words of the last prompt, by concept file. @type {Map<string, [string, number][]>} */
const similar = new Map();

/**
 * What was otherwise when the last prompt was encoded than in the concept's training, by concept file.
 * @type {Map<string, {clip_skip?: [number, number], text_encoder?: boolean}>}
 */
const different = new Map();

/** @type {WeakMap<object, LoaderPanel>} by node */
const panels = new WeakMap();

class LoaderPanel {
  #node;
  #picture = html("div", { class: "perfusion-picture" });
  #trigger = html("div");
  #about = html("p", { class: "perfusion-muted" });
  #head = html("div", { class: "perfusion-head" }, this.#picture, html("div", {}, this.#trigger, this.#about));
  #badge = html("p", { class: "perfusion-badge", role: "alert" });
  #chart = html("figure");
  #presets = html("div", { class: "perfusion-row", role: "group", "aria-label": text("Presets") });
  #line = new TriggerLine(() => this.#fit());
  /** @type {import("./concepts.js").Concept | undefined | null} null before the first time */
  #shown = null;
  /** @type {import("./gate.js").Preset[]} */
  #offered = [];
  #fit;

  /** @param {any} node one of LOADERS */
  constructor(node) {
    this.#node = node;
    const parts = [this.#head, this.#badge, this.#chart, this.#presets, this.#line.element];
    this.#fit = addPanel(node, "perfusion_concept", text("Concept"), ...parts, () => this.update());
    for (const name of ["concept", ...SETTINGS]) {
      const widget = widgetOf(node, name);
      const own = widget.callback;
      widget.callback = (...heard) => {
        own?.apply(widget, heard);
        this.update();
      };
    }
  }

  get #concept() {
    return conceptOf(this.#node);
  }

  get #settings() {
    const values = SETTINGS.map((name) => [name, Number(valueOf(this.#node, name))]);
    return /** @type {import("./gate.js").Settings} */ (Object.fromEntries(values));
  }

  update() {
    const concept = this.#concept;
    const on = isRunning(this.#node);
    if (concept !== this.#shown) this.#showConcept(concept);
    this.#badge.textContent = this.#problem(concept);
    drawGate(this.#chart, this.#settings, concept, similar.get(concept?.file ?? ""));
    const current = this.#offered.indexOf(presetLike(this.#settings, this.#offered));
    [...this.#presets.children].forEach((button, at) => button.setAttribute("aria-pressed", String(at === current)));
    this.#head.parentElement?.classList.toggle("perfusion-off", !on);
    this.#line.update(on && concept?.trigger ? [concept.trigger] : []);
    this.#fit();
  }

  /** @param {import("./concepts.js").Concept} [concept] */
  #showConcept(concept) {
    this.#shown = concept;
    paintAll();
    this.#head.hidden = !concept?.trigger;
    this.#picture.replaceChildren(thumbnail(concept));
    this.#trigger.replaceChildren(concept?.trigger ? this.#line.row(concept.trigger) : "");
    this.#about.textContent = concept ? summary(concept) : "";
    this.#about.title = concept?.notes ?? "";
    this.#offered = presetsOf(concept?.recommended);
    this.#presets.replaceChildren(...this.#offered.map((preset) => this.#presetButton(preset)));
  }

  /** @param {import("./gate.js").Preset} preset */
  #presetButton({ name, meaning, ...settings }) {
    const title = `${meaning}: ${SETTINGS.map((key) => `${key} ${settings[key]}`).join(", ")}`;
    return html("button", { type: "button", title, click: () => setWidgets(this.#node, settings) }, name);
  }

  /** @param {import("./concepts.js").Concept | undefined} concept */
  #problem(concept) {
    if (!concept) {
      const file = fileOf(this.#node);
      return concepts.problem || !file ? "" : text("{file} is not in models/perfusion.", { file });
    }
    if (concept.error) return concept.error;
    const later = replacerOf(this.#node);
    if (later) {
      const values = { node: later.title, trigger: concept.trigger };
      return text("{node} further on has {trigger} too, and only its settings count. Remove one of the two.", values);
    }
    const connected = connectedFamily(this.#node);
    if (!connected || connected.base_model === concept.base_model) return encoderProblem(concept.file);
    const [made, there] = [family(concept.base_model), family(connected.base_model)];
    const model = connected.told_by;
    return text("Does not fit: made for {made}, but {model} looks like {there}.", { made, model, there });
  }
}

/** @param {string} file */
function encoderProblem(file) {
  const { clip_skip, text_encoder } = different.get(file) ?? {};
  const said = [];
  if (clip_skip) {
    const [trained, here] = clip_skip;
    const values = { trained, here };
    said.push(
      text("Trained with clip skip {trained}, here it is {here}. Set CLIP Set Last Layer to -{trained}.", values),
    );
  }
  if (text_encoder) said.push(text("Trained with another text encoder (another checkpoint, or a LoRA more or less)."));
  return said.join(" ");
}

function updateAll() {
  for (const node of allNodes()) panels.get(node)?.update();
}

app.registerExtension({
  name: "perfusion.loader",
  nodeCreated(node) {
    if (!LOADERS.includes(node.comfyClass) || !node.addDOMWidget) return;
    const panel = new LoaderPanel(node);
    panels.set(node, panel);
    panel.update();
  },
  loadedGraphNode: (node) => panels.get(node)?.update(),
  afterConfigureGraph: updateAll,
  setup() {
    concepts.addEventListener("change", updateAll);
    api.addEventListener("perfusion.words", ({ detail }) => {
      for (const [file, words] of Object.entries(detail)) similar.set(file, words);
      updateAll();
    });
    api.addEventListener("perfusion.encoder", ({ detail }) => {
      for (const [file, what] of Object.entries(detail)) different.set(file, what);
      updateAll();
    });
    api.addEventListener("graphChanged", updateAll);
  },
});
