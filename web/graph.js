// What the graph says: its nodes, its prompts, where a model comes from.

import { app } from "../../scripts/app.js";
import { familyOfCheckpoint } from "./concepts.js";
import { mentions } from "./words.js";

export const LOADERS = ["PerfusionLoader", "PerfusionLoadConcept"];
const SUBGRAPH_INPUTS = -10; // the id that links from a subgraph's inputs have as their origin
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
 * What a node has put out, as the host remembers it.
 * @param {any} node
 * @param {Record<string, any>} [outputs]
 */
export const outputOf = (node, outputs = {}) =>
  outputs[node.graph.isRootGraph ? node.id : `${node.graph.id}:${node.id}`];

/**
 * @param {any} node
 * @param {string} name
 */
export const widgetOf = (node, name) => node.widgets?.find((widget) => widget.name === name);

/**
 * The nodes of a subgraph, in the graphs around it.
 * @param {any} graph
 * @returns {any[]}
 */
const nodesOf = (graph) => (graph ? allNodes().filter(({ subgraph }) => subgraph?.id === graph.id) : []);

/**
 * The link into an input, and the input that it comes from if that is one of the subgraph's that the node is in.
 * @param {any} node
 * @param {number} slot
 */
function linkInto(node, slot) {
  if (slot < 0 || !node.graph) return {}; // a new node is in no graph yet
  const { getInputLink } = window.LiteGraph.LGraphNode.prototype; // that of subgraphs' nodes looks inside
  const link = getInputLink.call(node, slot);
  const outer = link && Number(link.origin_id) === SUBGRAPH_INPUTS ? node.graph.inputs[link.origin_slot] : undefined;
  return { link, name: outer?.name };
}

/**
 * @param {any} node
 * @param {string} name of an input
 * @returns {number}
 */
export const slotOf = (node, name) =>
  (node.inputs ?? []).findIndex((input) => (input.widget?.name ?? input.name) === name);

/**
 * Where an input's value is set: here, on the host's primitive that is connected, or on the nodes of the subgraph from
 * which it was promoted. Nowhere if another node makes it.
 * @param {any} node
 * @param {string} name
 * @returns {{node: any, widget: any}[]}
 */
export function settersOf(node, name) {
  const own = widgetOf(node, name);
  const { link, name: outer } = linkInto(node, slotOf(node, name));
  if (outer) return nodesOf(node.graph).flatMap((around) => settersOf(around, outer));
  const from = link && node.graph.getNodeById(link.origin_id);
  if (from?.type === "PrimitiveNode" && from.widgets?.length) return [{ node: from, widget: from.widgets[0] }];
  return own && !link ? [{ node, widget: own }] : [];
}

/**
 * The value that an input has when it runs, as far as it is set anywhere.
 * @param {any} node
 * @param {string} name
 */
export const valueOf = (node, name) => (settersOf(node, name)[0]?.widget ?? widgetOf(node, name))?.value;

/**
 * Sets widgets as a user would: the node hears of it, and it can be undone.
 * @param {any} node
 * @param {Record<string, unknown>} values
 */
export function setWidgets(node, values) {
  changeGraph(() => {
    for (const [name, value] of Object.entries(values)) {
      for (const { node: there, widget } of settersOf(node, name)) {
        widget.value = value;
        widget.callback?.(value, app.canvas, there);
      }
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
    .flatMap((node) => (node.widgets ?? []).map(({ name }) => name !== "trigger" && valueOf(node, name)))
    .some((value) => typeof value === "string" && mentions(value, trigger));
}

/**
 * The node at the other end of an input's link, out of the subgraph if it comes from there.
 * @param {any} node
 * @param {string} type of the input
 * @returns {any}
 */
export function source(node, type) {
  return sourceAt(
    node,
    (node.inputs ?? []).findIndex((/** @type {any} */ input) => input.type === type),
  );
}

/**
 * @param {any} node
 * @param {number} slot
 * @returns {any}
 */
export function sourceAt(node, slot) {
  const { link, name } = linkInto(node, slot);
  if (!name) return link && node.graph.getNodeById(link.origin_id);
  const [around] = nodesOf(node.graph);
  const inputs = /** @type {any[]} */ (around?.inputs ?? []);
  return (
    around &&
    sourceAt(
      around,
      inputs.findIndex((input) => input.name === name),
    )
  );
}

/** The node that a node's model comes from in the first place. */
export function makerOf(/** @type {any} */ node) {
  let maker;
  const seen = new Set();
  for (let at = source(node, "MODEL"); at && !seen.has(at); at = source(at, "MODEL")) seen.add((maker = at));
  return maker;
}

/**
 * The base_model that a node's model has, as far as the node or its file's name tells, and by which name.
 * @param {any} node
 * @returns {{base_model: string, told_by: string} | undefined}
 */
function familyOf(node) {
  if (node.type === "PerfusionDemoModel") return { base_model: "demo", told_by: node.title };
  const checkpoint = valueOf(node, "ckpt_name") ?? valueOf(node, "unet_name");
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

/**
 * The Loaders that take their concept from a node.
 * @param {any} node
 */
export function loadersBehind(node) {
  const slot = node?.outputs?.findIndex((/** @type {any} */ { type }) => type === "COMBO") ?? -1;
  if (slot < 0) return [];
  return (node.getOutputNodes(slot) ?? []).filter((/** @type {any} */ { type }) => LOADERS.includes(type));
}
