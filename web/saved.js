// Graphs that were saved when strength stood behind key_lock: a graph holds the values of widgets by their order alone.

import { app } from "../../scripts/app.js";

/** Which of a node's values is strength now. */
const STRENGTH = { PerfusionLoader: 1, PerfusionLoadConcept: 1, PerfusionConceptSettings: 0 };
const LATER = 3; // places further on it stood, behind beta, temperature and key_lock

/**
 * What was saved of a node, with its values in today's order. It lists its inputs in the order of then; where it lists
 * none it was written by hand, in the former one.
 * @param {any} saved
 * @param {number} place of strength now
 */
function inOrder(saved, place) {
  const listed = (/** @type {string} */ name) => saved.inputs?.findIndex((input) => input.name === name) ?? -1;
  if (!Array.isArray(saved.widgets_values) || listed("strength") < listed("beta")) return saved;
  const values = [...saved.widgets_values];
  values.splice(place, 0, ...values.splice(place + LATER, 1));
  return { ...saved, widgets_values: values };
}

app.registerExtension({
  name: "perfusion.saved",
  beforeRegisterNodeDef(nodeType, { name }) {
    if (!(name in STRENGTH)) return;
    const { configure } = nodeType.prototype;
    nodeType.prototype.configure = function (/** @type {any} */ saved) {
      return configure.call(this, inOrder(saved, STRENGTH[name]));
    };
  },
});
