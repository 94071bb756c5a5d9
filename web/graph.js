// What the graph says: its nodes, its prompts, where a model comes from.

import { app } from "../../scripts/app.js";
import { familyOfCheckpoint } from "./concepts.js";
import { mentions } from "./words.js";

export const LOADERS = ["PerfusionLoader", "PerfusionLoadConcept"];
const NO_PROMPTS = ["PerfusionTrainConcept", "Note", "MarkdownNote"];

/**
 * All nodes, those in subgraphs included.
 * @returns {any[]}
 */
export function allNodes(graph = app.rootGraph ?? app.graph) {
  return (graph?.nodes ?? []).flatMap((node) => [node, ...(node.subgraph ? allNodes(node.subgraph) : [])]);
}

const OFF = [2, 4]; // modes of muted and of bypassed nodes

/** @param {any} node */
export const isOff = (node) => OFF.includes(node.mode);

/**
 * The nodes that run when the graph does.
 * @returns {any[]}
 */
export function activeNodes(graph = app.rootGraph ?? app.graph) {
  const on = (graph?.nodes ?? []).filter((/** @type {any} */ node) => !isOff(node));
  return on.flatMap((node) => [node, ...(node.subgraph ? activeNodes(node.subgraph) : [])]);
}

/**
 * Whether a node runs when the graph does; one that is in no graph yet will.
 * @param {any} node
 */
export const isRunning = (node) => !node.graph || activeNodes().includes(node);

/**
 * The node that runs under an id, in which the subgraphs it is in stand before its own.
 * @param {unknown} id
 */
export function nodeOfRun(id) {
  let [graph, node] = [app.rootGraph ?? app.graph, undefined];
  for (const part of String(id).split(":")) {
    node = graph?.nodes.find((/** @type {any} */ node) => String(node.id) === part);
    graph = node?.subgraph;
  }
  return node;
}

/**
 * @param {any} node
 * @param {string} name
 */
export const widgetOf = (node, name) => node.widgets?.find((widget) => widget.name === name);

/**
 * Sets widgets as a user would: the node hears of it, and it can be undone.
 * @param {any} node
 * @param {Record<string, unknown>} values
 */
export function setWidgets(node, values) {
  changeGraph(() => {
    for (const [name, value] of Object.entries(values)) {
      const widget = widgetOf(node, name);
      if (!widget) continue;
      widget.value = value;
      widget.callback?.(value, app.canvas, node);
    }
  });
}

/**
 * Runs a change of the graph as one step to undo.
 * @param {() => void} change
 */
export function changeGraph(change) {
  app.canvas.emitBeforeChange?.();
  change();
  app.canvas.emitAfterChange?.();
  app.canvas.setDirty(true, true);
}

/**
 * Whether some text in the graph uses a trigger.
 * @param {string} trigger
 */
export function isInPrompts(trigger) {
  return allNodes()
    .filter((node) => !NO_PROMPTS.includes(node.type))
    .flatMap((node) => node.widgets ?? [])
    .some(({ name, value }) => name !== "trigger" && typeof value === "string" && mentions(value, trigger));
}

/**
 * The node at the other end of an input's link; none for a node that is not in a graph yet.
 * @param {any} node
 * @param {string} type of the input
 */
export function source(node, type) {
  const slot = (node.inputs ?? []).findIndex((input) => input.type === type);
  return slot < 0 || !node.graph ? null : node.getInputNode(slot);
}

/**
 * The base_model that a node's model has, as far as the node or its file's name tells, and by which name.
 * @param {any} node
 * @returns {{base_model: string, told_by: string} | undefined}
 */
function familyOf(node) {
  if (node.type === "PerfusionDemoModel") return { base_model: "demo", told_by: node.title };
  const checkpoint = (widgetOf(node, "ckpt_name") ?? widgetOf(node, "unet_name"))?.value;
  const base_model = typeof checkpoint === "string" && familyOfCheckpoint(checkpoint);
  return base_model ? { base_model, told_by: checkpoint } : undefined;
}

/**
 * The base_model of what is connected to a node, and by which name.
 * @param {any} node
 */
export function connectedFamily(node) {
  const seen = new Set();
  for (let at = source(node, "MODEL"); at && !seen.has(at); at = source(at, "MODEL")) {
    seen.add(at);
    const told = familyOf(at);
    if (told) return told;
  }
}

/** The base_models of the graph's models, as far as they are told. */
export const modelFamilies = () => [...new Set(activeNodes().flatMap((node) => familyOf(node)?.base_model ?? []))];
