// Which triggers the graph teaches, by which nodes, and which of two nodes with the same one counts.

import { LOADERS, activeNodes, isOff, sourceAt, widgetOf } from "./graph.js";
import { conceptOf } from "./server.js";

const MAKERS = ["PerfusionTrainConcept", "PerfusionImportConcept"];
const CARRIERS = ["MODEL", "PERFUSION_CONCEPTS"]; // types of links on which concepts travel

/** @typedef {{trigger: string, superclass: string}} Taught */

/**
 * The concepts that a node loads or makes itself. A subgraph around a maker may have its words.
 * @param {any} node
 * @returns {Taught[]}
 */
export function taughtBy(node) {
  if (LOADERS.includes(node.type)) {
    const concept = conceptOf(node);
    return concept?.trigger ? [concept] : [];
  }
  if (!MAKERS.includes(node.type) && !node.subgraph?.nodes.some(({ type }) => MAKERS.includes(type))) return [];
  const [triggers, superclasses] = ["trigger", "superclass"].map((name) =>
    String(widgetOf(node, name)?.value ?? "").split(","),
  );
  return triggers
    .map((trigger, at) => ({ trigger: trigger.trim(), superclass: (superclasses[at] ?? "").trim() }))
    .filter(({ trigger }) => trigger);
}

/** Those that nodes of the graph teach, each once. */
export function taught() {
  const all = activeNodes()
    .filter((node) => !isSetFromOutside(node))
    .flatMap(taughtBy);
  return [...new Map(all.map((one) => [one.trigger.toLowerCase(), one])).values()];
}

/** @param {any} node whose trigger comes over a link */
const isSetFromOutside = (node) =>
  node.inputs?.some(
    (/** @type {any} */ { name }, /** @type {number} */ slot) => name === "trigger" && node.isInputConnected(slot),
  );

/**
 * The nodes whose concepts reach a node's output, in the order in which the later one of the same trigger counts.
 * @param {any} node
 * @param {any[]} [behind] nodes on the way from it
 * @returns {any[]}
 */
export function teachersOf(node, behind = []) {
  if (behind.includes(node)) return [];
  const before = (node.inputs ?? []).flatMap(({ type }, slot) => {
    const from = CARRIERS.includes(type) && sourceAt(node, slot);
    return from ? teachersOf(from, [...behind, node]) : [];
  });
  return taughtBy(node).length && !isOff(node) ? [...before, node] : before;
}

/**
 * The node that has a node's trigger, too, and is the one that counts wherever they meet.
 * @param {any} node
 */
export function replacerOf(node) {
  const own = taughtBy(node).map(({ trigger }) => trigger.toLowerCase());
  const hasOwn = (/** @type {any} */ other) =>
    taughtBy(other).some(({ trigger }) => own.includes(trigger.toLowerCase()));
  const last = activeNodes()
    .filter((end) => !end.outputs?.some(({ type, links }) => CARRIERS.includes(type) && links?.length))
    .map((end) => teachersOf(end))
    .filter((teachers) => teachers.includes(node))
    .map((teachers) => teachers.findLast(hasOwn));
  return last.includes(node) ? undefined : last[0];
}
