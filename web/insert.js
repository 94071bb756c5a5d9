// Puts a Loader into the graph, between a source of MODEL and CLIP and what used them.

import { app } from "../../scripts/app.js";
import { changeGraph, setWidgets, widgetOf } from "./graph.js";

const GAP = 40;
const UNTOUCHED = ["PerfusionTrainConcept", "PerfusionCovariance"]; // they need the model as it is

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
    node.pos = position ?? freePlace(graph, node, source); // the Vue nodes of older frontends take it only here
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
  const selected = Object.values(app.canvas.selected_nodes ?? {}).filter(gives);
  if (selected.length === 1) return selected[0];
  const makers = graph.nodes.filter((node) => gives(node) && !node.inputs?.some((input) => input.type === "MODEL"));
  return makers.length === 1 ? makers[0] : undefined;
}

/** @param {"MODEL" | "CLIP"} type */
function wire(graph, source, node, type) {
  const out = source.outputs.findIndex((output) => output.type === type);
  const own = node.outputs.findIndex((output) => output.type === type);
  const users = [...(source.outputs[out].links ?? [])].map((id) => graph.getLink?.(id) ?? graph.links[id]);
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

/** Right of the source, else in the middle of the view, and below whatever is there. */
function freePlace(graph, node, source) {
  const { ds, canvas } = app.canvas;
  const middle = [canvas.clientWidth / 2 / ds.scale - ds.offset[0], canvas.clientHeight / 2 / ds.scale - ds.offset[1]];
  const [x, start] = source ? [source.pos[0] + source.size[0] + GAP, source.pos[1]] : middle;
  const others = graph.nodes.filter((other) => other !== node).map(({ pos, size }) => [...pos, ...size]);
  const beside = others.filter(([left, , width]) => left < x + node.size[0] + GAP && x < left + width + GAP);
  let y = start;
  for (const [, top, , height] of beside.sort(([, one], [, other]) => one - other)) {
    if (top < y + node.size[1] + 2 * GAP && y < top + height + 2 * GAP) y = top + height + 2 * GAP;
  }
  return [x, y];
}
