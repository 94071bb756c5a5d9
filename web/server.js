// The concepts on the server, and what can be done to them there.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { html } from "./element.js";
import {
  LOADERS,
  allNodes,
  loadersBehind,
  nodeOfRun,
  setWidgets,
  settersOf,
  slotOf,
  sourceAt,
  widgetOf,
} from "./graph.js";
import { text } from "./texts.js";

/** @typedef {import("./concepts.js").Concept} Concept */

/** All concepts, as last listed. "change" is dispatched when they may be others. */
class Concepts extends EventTarget {
  /** @type {Concept[]} */
  list = [];
  /** Why there is no list: not asked yet, no such route on this server, or what went wrong. */
  problem = "";
  #loaded = Promise.resolve();

  /** Lists them again, after what is already being asked, which may know less. */
  load() {
    return (this.#loaded = this.#loaded.then(() => this.#load()));
  }

  async #load() {
    try {
      this.list = await answer(await api.fetchApi("/perfusion/concepts", { cache: "no-store" }));
      this.problem = "";
    } catch (error) {
      this.list = [];
      const why = error instanceof Error ? error.message : String(error);
      this.problem = text("The concepts cannot be listed: {why}", { why });
    }
    this.dispatchEvent(new Event("change"));
  }

  /** @param {unknown} file */
  find(file) {
    return this.list.find((concept) => concept.file === file);
  }

  /**
   * Writes into a file's metadata. Throws with what the server says against it.
   * @param {{file: string, name?: string, trigger?: string, notes?: string, tags?: string, thumbnail?: string}} changes
   */
  async change(changes) {
    await post("metadata", changes);
    await this.load();
  }

  /**
   * Gives a concept and its file another name; what loads it in the graph loads it by the new one. Returns what it is
   * then. Throws with what the server says against it.
   * @param {string} file
   * @param {string} name
   * @returns {Promise<Concept>}
   */
  async rename(file, name) {
    const concept = await post("rename", { file, name });
    await listFilesAgain();
    for (const node of allNodes())
      if (LOADERS.includes(node.type) && fileOf(node) === file) setWidgets(node, { concept: concept.file });
    return concept;
  }

  /**
   * Moves a file to the trash; returns what undoes it.
   * @param {string} file
   * @returns {Promise<string>}
   */
  async trash(file) {
    const { undo } = await post("trash", { file });
    await listFilesAgain();
    return undo;
  }

  /** @param {string} token what trash returned */
  async undo(token) {
    await post("undo", { undo: token });
    await listFilesAgain();
  }
}

export const concepts = new Concepts();

/** The file that a node wrote when it ran last. @type {WeakMap<object, string>} by node */
const written = new WeakMap();

/**
 * The file that a Loader loads. What another node gives it is not known before a run.
 * @param {any} loader
 * @returns {string | undefined}
 */
export function fileOf(loader) {
  const [here] = settersOf(loader, "concept");
  return here ? here.widget.value : written.get(sourceAt(loader, slotOf(loader, "concept")));
}

/**
 * The concept that a Loader loads, as far as it is known.
 * @param {any} loader
 */
export const conceptOf = (loader) => concepts.find(fileOf(loader));

/**
 * Tells the Loaders behind a node which file it wrote.
 * @param {any} node
 * @param {string} file
 */
export function give(node, file) {
  written.set(node, file);
  for (const loader of loadersBehind(node)) {
    const widget = widgetOf(loader, "concept");
    widget.value = file; // what it is given, for who looks at it
    widget.callback?.(file, app.canvas, loader);
  }
}

/** In all nodes; the host also tells us to list ours. Newer frontends see at the same time what is missing no more. */
export const listFilesAgain = () => app.refreshMissingModels?.() ?? app.reloadNodeDefs?.() ?? app.refreshComboInNodes();

/** Nodes that write files which others offer. */
const WRITERS = ["PerfusionSaveConcept", "PerfusionTrainConcept", "PerfusionExportLoRA"];

/**
 * The picture of a concept, or the first letter of its superclass.
 * @param {Concept} [concept]
 */
export function thumbnail(concept) {
  if (!concept?.has_thumbnail) return html("span", { "aria-hidden": "true" }, (concept?.superclass ?? "?").slice(0, 1));
  const { file, modified, trigger } = concept;
  const address = `/perfusion/thumbnail?${new URLSearchParams({ file, at: String(modified) })}`;
  const alt = text("What {trigger} looks like", { trigger });
  return html("img", { src: api.apiURL(address), alt, draggable: "false" });
}

/**
 * What one of our routes says. Throws with what the server says against it.
 * @param {string} route
 * @param {URLSearchParams} asked
 */
export const get = async (route, asked) => answer(await api.fetchApi(`/perfusion/${route}?${asked}`));

/**
 * Asks one of our routes for something. Throws with what the server says against it.
 * @param {string} route
 * @param {object} body
 */
export async function post(route, body) {
  const headers = { "Content-Type": "application/json" };
  return answer(await api.fetchApi(`/perfusion/${route}`, { method: "POST", headers, body: JSON.stringify(body) }));
}

/** @param {Response} response */
async function answer(response) {
  const body = await response.json().catch(() => ({}));
  const status = String(response.status);
  if (!response.ok) throw new Error(body.error ?? text("the server answers {status}.", { status }));
  return body;
}

app.registerExtension({
  name: "perfusion.concepts",
  setup() {
    concepts.problem = text("The concepts are being looked up.");
    concepts.load();
    let written = false;
    api.addEventListener("executing", ({ detail }) => (written ||= WRITERS.includes(nodeOfRun(detail)?.type)));
    for (const end of ["execution_success", "execution_error", "execution_interrupted"]) {
      api.addEventListener(end, () => {
        if (written) listFilesAgain();
        written = false;
      });
    }
  },
  refreshComboInNodes: () => concepts.load(),
});
