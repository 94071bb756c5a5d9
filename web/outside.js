// What a node shows, the nodes of the subgraphs around it show, too.

import { allNodes } from "./graph.js";

/**
 * One that does what all of several do.
 * @template {object} T
 * @param {T[]} all
 * @returns {T}
 */
export const together = (all) =>
  new Proxy(/** @type {T} */ ({}), {
    get:
      (_, name) =>
      (/** @type {any[]} */ ...heard) =>
        all.forEach((one) => one[name](...heard)),
  });

/** Nodes of subgraphs that were given out. @type {WeakSet<object>} */
const known = new WeakSet();

/**
 * The graph's nodes of subgraphs in which there is a node of a type, each with that one, and each once.
 * @param {string} type
 * @returns {[any, any][]}
 */
export function newAround(type) {
  const found = allNodes().flatMap((around) => {
    const inner = !known.has(around) && around.subgraph && allNodes(around.subgraph).find((node) => node.type === type);
    return inner ? [/** @type {[any, any]} */ ([around, inner])] : [];
  });
  for (const [around] of found) known.add(around);
  return found;
}
