// A panel of our own below a node's widgets, in both renderers.

import { app } from "../../scripts/app.js";
import { html, styled } from "./element.js";

const MARGIN = 10; // the classic canvas's, around the elements of widgets
const WIDTH = 310; // of a new node

/**
 * Adds a panel to a node; returns what makes the node as high as the panel then needs. Workflows and prompts never hold
 * it.
 * @param {any} node
 * @param {string} name
 * @param {string} label for screen readers
 * @param {...(Node | (() => void))} parts of it; functions are called when it comes into view
 */
export function addPanel(node, name, label, ...parts) {
  const children = /** @type {Node[]} */ (parts.filter((part) => typeof part !== "function"));
  const inner = html("div", { class: "perfusion-panel", role: "group", "aria-label": label }, ...children);
  const outer = html("div", { class: "perfusion-frame" }, inner);
  let height = 0;
  const needed = () => height + 2 * MARGIN;
  const options = { serialize: false, hideInPanel: true, getMinHeight: needed, getMaxHeight: needed };
  const widget = node.addDOMWidget(name, "perfusion", outer, options);
  widget.serialize = false;
  widget.label = label; // for frontends that list it among the properties all the same
  Object.defineProperty(widget, "width", { get: () => undefined, set() {} }); // which take it for the node's width then
  keep(node, widget);
  node.setSize([Math.max(node.size[0], WIDTH), node.size[1]]);

  const fit = () => {
    if (window.LiteGraph.vueNodesMode) return; // there the page lays it out
    const tight = node.size[1] <= node.computeSize()[1];
    height = inner.offsetHeight || heightUnseen(outer, node.size[0] - 2 * MARGIN);
    const least = node.computeSize()[1];
    if (tight || node.size[1] < least) node.setSize([node.size[0], least]); // else it has room that a user gave it
    app.canvas?.setDirty(true, true);
  };
  let seen = false;
  new ResizeObserver(([{ contentRect }]) => {
    const now = contentRect.width > 0;
    if (now && !seen) for (const part of parts) if (typeof part === "function") part();
    seen = now;
    fit();
  }).observe(inner);
  return fit;
}

/**
 * Some frontends show on a subgraph's node only what was promoted to it, and forget what else it is given.
 * @param {any} node
 * @param {any} widget
 */
function keep(node, widget) {
  if (node.widgets.includes(widget)) return;
  const promoted = /** @type {() => any[]} */ (Object.getOwnPropertyDescriptor(node, "widgets")?.get);
  const get = () => [...promoted.call(node), widget];
  Object.defineProperty(node, "widgets", { configurable: true, enumerable: true, get, set() {} });
}

/**
 * The height of an element that the host does not show, as when the view is too far away.
 * @param {HTMLElement} element
 * @param {number} width
 */
function heightUnseen(element, width) {
  const place = html("div", { style: `position: fixed; visibility: hidden; width: ${width}px` });
  const parent = element.parentElement;
  document.body.append(place);
  place.append(element);
  const height = element.offsetHeight;
  if (parent) parent.append(element);
  place.remove();
  return height;
}

app.registerExtension({ name: "perfusion.style", init: () => styled });
