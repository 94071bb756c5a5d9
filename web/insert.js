// Puts a Loader into the graph, between a source of MODEL and CLIP and what used them.

import { app } from "../../scripts/app.js";
import { LOADERS, changeGraph, setWidgets, widgetOf } from "./graph.js";
import { fileOf } from "./server.js";

const GAP = 40;
const ROOM = [330, 620]; // for a Loader, whose panel has no height until it is drawn
const UNTOUCHED = ["PerfusionTrainConcept", "PerfusionCovariance"]; // they need the model as it is

/**
 * Shows the Loader of a concept that the graph has; without one, adds it. Returns whether it was there.
 * @param {string} file
 */
export function showLoader(file) {
  const there = app.canvas.graph.nodes.find(
    (/** @type {any} */ node) => LOADERS.includes(node.type) && fileOf(node) === file,
  );
  const node = there ?? addLoader(file);
  app.canvas.selectNode(node);
  const [left, top, width, height] = app.canvas.visible_area;
  const [x, y] = node.pos;
  if (x < left || y < top || x + ROOM[0] > left + width || y > top + height) app.canvas.centerOnNode(node);
  return Boolean(there);
}

/**
 * Adds a Loader with a concept, wired when there is something to wire it to.
 * @param {string} file
 * @param {[number, number]} [position] on the canvas; without, where there is room
 */
export function addLoader(file, position) {
  const graph = app.canvas.graph;
  const node = window.LiteGraph.createNode("PerfusionLoader");
  changeGraph(() => {
    const source = sourceOf(graph);
    node.pos = position ?? freePlace(graph, source); // the Vue nodes of older frontends take it only here
    graph.add(node);
    const files = widgetOf(node, "concept").options.values;
    if (Array.isArray(files) && !files.includes(file)) files.push(file); // the host's list may be older than ours
    setWidgets(node, { concept: file });
    if (source) for (const type of ["MODEL", "CLIP"]) wire(graph, source, node, type);
    app.canvas.selectNode(node);
  });
  return node;
}

/** The selected node with a model and a text encoder to give, else the graph's only one that makes them. */
function sourceOf(graph) {
  const gives = (node) => ["MODEL", "CLIP"].every((type) => node.outputs?.some((output) => output.type === type));
  const selected = [...(app.canvas.selectedItems ?? [])].filter(gives);
  if (selected.length === 1) return selected[0];
  const makers = graph.nodes.filter((node) => gives(node) && !node.inputs?.some((input) => input.type === "MODEL"));
  return makers.length === 1 ? makers[0] : undefined;
}

/** @param {"MODEL" | "CLIP"} type */
function wire(graph, source, node, type) {
  const out = source.outputs.findIndex((output) => output.type === type);
  const own = node.outputs.findIndex((output) => output.type === type);
  const users = [...graph.links.values()].filter(
    (link) => String(link.origin_id) === String(source.id) && link.origin_slot === out,
  );
  source.connect(
    out,
    node,
    node.inputs.findIndex((input) => input.type === type),
  );
  for (const { target_id, target_slot } of users) {
    const user = graph.getNodeById(target_id);
    if (user && !UNTOUCHED.includes(user.type)) node.connect(own, user, target_slot);
  }
}

/** Right of the source, else in the middle of the view, and below whatever is there, notes and groups too. */
function freePlace(graph, source) {
  const { ds, canvas } = app.canvas;
  const middle = [canvas.clientWidth / 2 / ds.scale - ds.offset[0], canvas.clientHeight / 2 / ds.scale - ds.offset[1]];
  const [x, start] = source ? [source.pos[0] + source.size[0] + GAP, source.pos[1]] : middle;
  const title = window.LiteGraph.NODE_TITLE_HEIGHT;
  const nodes = graph.nodes.map(({ pos, size }) => [pos[0], pos[1] - title, size[0], size[1] + title]);
  const holdsSource = ({ pos, size }) =>
    source && pos.every((from, axis) => from <= source.pos[axis] && source.pos[axis] <= from + size[axis]);
  const groups = graph.groups.filter((group) => !holdsSource(group)).map(({ pos, size }) => [...pos, ...size]);
  const beside = [...nodes, ...groups].filter(([left, , width]) => left < x + ROOM[0] + GAP && x < left + width + GAP);
  let y = start;
  for (const [, top, , height] of beside.sort(([, one], [, other]) => one - other)) {
    if (top < y + ROOM[1] + GAP && y - title < top + height + GAP) y = top + height + title + GAP;
  }
  return [x, y];
}
