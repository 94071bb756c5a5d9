// On the sweep: its grid, in which a click on a picture sets what loads the concept to the picture's settings.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { html } from "./element.js";
import {
  LOADERS,
  allNodes,
  changeGraph,
  nodeOfRun,
  outputOf,
  setWidgets,
  settersOf,
  sourceAt,
  valueOf,
} from "./graph.js";
import { cells, labels, scale } from "./grid.js";
import { addPanel } from "./panel.js";
import { conceptOf } from "./server.js";
import { spoken, text } from "./texts.js";

/** @typedef {import("./grid.js").Cell} Cell */
/** @typedef {{images: Record<string, string>[], perfusion_sweep: [import("./grid.js").Grid]}} Output of the node */

const SETTERS = [...LOADERS, "PerfusionConceptSettings"];
const hint = () => text("After a run, click a picture to set the Loader as it was made.");
const HOSTS_PICTURE = "$$canvas-image-preview"; // the classic canvas's widget

class SweepPanel {
  #node;
  #grid = html("div", { class: "perfusion-sweep", hidden: true });
  #status = html("p", { class: "perfusion-muted", role: "status" }, hint());
  #whole = html("a", { target: "_blank", hidden: true }, text("Open the whole picture"));
  /** @type {[Cell, HTMLElement][]} */
  #shown = [];
  #height = 0; // of the node before the host made room for its picture
  #fit;

  /** @param {any} node */
  constructor(node) {
    this.#node = node;
    const parts = [this.#grid, this.#status, this.#whole];
    this.#fit = addPanel(node, "perfusion_sweep", text("Grid"), ...parts, () => this.mark());
    this.#fit();
    node.hideOutputImages = true; // Vue nodes would show the picture again
    const executed = node.onExecuted;
    node.onExecuted = (...heard) => {
      executed?.apply(node, heard);
      this.show(heard[0]);
    };
    let images = node.imgs;
    // and so would the classic canvas, which draws what is here
    Object.defineProperty(node, "imgs", {
      configurable: true,
      get: () => (this.#grid.hidden ? images : undefined),
      set(value) {
        images = value;
      },
    });
  }

  /** @param {Output} [output] */
  show(output) {
    const grid = output?.perfusion_sweep?.[0];
    if (!grid) return;
    this.#shown = cells(grid).map((cell) => [cell, this.#picture(cell)]);
    const pictures = this.#shown.map(([, picture]) => picture);
    const many = grid.columns.values.length;
    const label = (/** @type {string} */ words) => html("span", { title: words, "aria-hidden": "true" }, words);
    this.#grid.replaceChildren(
      label(""),
      ...labels(grid.columns).map(label),
      ...labels(grid.rows).flatMap((words, row) => [
        label(words),
        ...Array.from({ length: many }, (_, column) => pictures[row * many + column] ?? html("span")),
      ]),
    );
    const address = api.apiURL(`/view?${new URLSearchParams(output.images[0])}`);
    this.#whole.href = address;
    this.#grid.style.gridTemplateColumns = `fit-content(72px) repeat(${many}, minmax(0, 1fr))`;
    this.#grid.style.setProperty("--perfusion-sheet", `url("${address}")`);
    this.#grid.style.setProperty("--perfusion-scale", scale(grid));
    this.#status.textContent = hint();
    this.mark();
    this.#take(true);
  }

  /** Leaves the room to the host, which shows the pictures as they come. */
  start() {
    this.#take(false);
    this.#height = this.#node.size[1];
  }

  /** A run has ended without a new grid. */
  fail() {
    if (this.#shown.length) this.#take(true);
  }

  /** @param {boolean} shown whether it is ours to show the grid */
  #take(shown) {
    const at = this.#node.widgets.findIndex((/** @type {any} */ { name }) => name === HOSTS_PICTURE);
    if (shown && at >= 0) {
      this.#node.widgets.splice(at, 1);
      this.#node.setSize([this.#node.size[0], this.#height]);
    }
    this.#grid.hidden = this.#whole.hidden = !shown;
    this.#fit();
  }

  /** Shows which pictures are made as the graph is set now. */
  mark() {
    for (const [{ settings, triggers }, picture] of this.#shown) {
      if (picture.tagName !== "BUTTON") continue;
      const nodes = usersOf(triggers, settings);
      const same = (/** @type {any} */ node) =>
        Object.entries(settings).every(([name, value]) => Math.abs(valueOf(node, name) - value) < 1e-6);
      picture.setAttribute("aria-pressed", String(nodes.length > 0 && nodes.every(same)));
    }
  }

  /** @param {Cell} cell */
  #picture(cell) {
    const { label, part, settings } = cell;
    const look = { class: "perfusion-cell", style: `background-position: ${part}`, title: label, "aria-label": label };
    if (!Object.keys(settings).length) return html("span", { ...look, role: "img" });
    return html("button", { ...look, type: "button", click: () => this.#choose(cell) });
  }

  /** @param {Cell} cell */
  #choose({ settings, triggers }) {
    const words = Object.entries(settings).map(([name, value]) => `${name} ${value}`);
    const nodes = usersOf(triggers, settings);
    changeGraph(() => nodes.forEach((node) => setWidgets(node, settings)));
    const listed = (/** @type {string[]} */ words) => new Intl.ListFormat(spoken()).format(words);
    this.#status.textContent = nodes.length
      ? text("Set in {nodes}: {settings}.", { nodes: listed(nodes.map(({ title }) => title)), settings: listed(words) })
      : text("Nothing is set: no node here loads {triggers}.", { triggers: listed(triggers) });
    this.mark();
    this.#fit();
  }
}

/**
 * The nodes that use these concepts, and no others, as is set on them; without those whose settings other nodes give.
 * @param {string[]} triggers
 * @param {Record<string, number>} settings
 */
function usersOf(triggers, settings) {
  return allNodes().filter((node) => {
    if (!SETTERS.includes(node.type)) return false;
    const own = triggersOf(node);
    const free = Object.keys(settings).every((name) => settersOf(node, name).length);
    return free && own.length && own.every((it) => triggers.includes(it));
  });
}

/**
 * The triggers of the concepts that a node loads, makes, or is given by others.
 * @param {any} node
 * @returns {string[]}
 */
function triggersOf(node) {
  if (LOADERS.includes(node.type)) return [conceptOf(node)?.trigger ?? ""];
  const made = valueOf(node, "trigger");
  if (made) return made.split(",").map((/** @type {string} */ it) => it.trim().normalize("NFC"));
  return (node.inputs ?? []).flatMap(({ type }, slot) => {
    const from = type === "PERFUSION_CONCEPTS" && sourceAt(node, slot);
    return from ? triggersOf(from) : [];
  });
}

/** @type {WeakMap<object, SweepPanel>} by node */
const panels = new WeakMap();

/** @param {(panel: SweepPanel, node: any) => void} work */
function each(work) {
  for (const node of allNodes()) {
    const panel = panels.get(node);
    if (panel) work(panel, node);
  }
}

/**
 * What the nodes made, as the host remembers it.
 * @param {Record<string, any>} outputs
 */
const showAll = (outputs) => each((panel, node) => panel.show(outputOf(node, outputs)));

app.registerExtension({
  name: "perfusion.sweep",
  nodeCreated(node) {
    if (node.comfyClass === "PerfusionSweep" && node.addDOMWidget) panels.set(node, new SweepPanel(node));
  },
  afterConfigureGraph: () => showAll(app.nodeOutputs),
  onNodeOutputsUpdated: showAll,
  setup() {
    api.addEventListener("executing", ({ detail }) => panels.get(nodeOfRun(detail))?.start());
    for (const stop of ["execution_interrupted", "execution_error"])
      api.addEventListener(stop, () => each((panel) => panel.fail()));
    api.addEventListener("graphChanged", () => each((panel) => panel.mark()));
  },
});
