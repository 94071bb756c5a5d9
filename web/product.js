// From a training to pictures: the workflow that generates, with what was learned in it.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { LOADERS, makerOf, setWidgets, source, valueOf } from "./graph.js";
import { concepts, listFilesAgain } from "./server.js";
import { text } from "./texts.js";

/** The workflow that generates, and the trigger in its prompt, by base_model. */
const ANIMA = { template: "perfusion_anima_generate", example: "<my-teddy>" }; // whose loaders serve Cosmos, too
const TEMPLATES = {
  sdxl: { template: "5 Generate SDXL", example: "<my-tiger>" },
  anima: ANIMA,
  "cosmos-predict2": ANIMA,
};
const OTHERWISE = { template: "3 Generate SD1.5", example: "<my-teddy>" };
export const OURS = decodeURIComponent(new URL(import.meta.url).pathname.split("/").at(-2) ?? ""); // this pack's folder
const DEMO = { CLIPTextEncode: "", KSampler: { steps: 20, cfg: 5, scheduler: "normal" } };

/**
 * Opens the workflow of the concept's base model with a Loader of the concept, the trainer's model, and a prompt that
 * names the trigger.
 * @param {any} trainer
 * @param {string} file
 * @param {import("./course.js").Course} course
 */
export async function generateWith(trainer, file, { size }) {
  const { trigger, base_model } = concepts.find(file) ?? {};
  if (!trigger) throw new Error(text("{file} is not in models/perfusion any more.", { file }));
  const { template, example } = TEMPLATES[base_model] ?? OTHERWISE;
  const maker = copyOf(makerOf(trainer));
  const others = ["CLIP", "VAE"].map((type) => copyOf(source(trainer, type)));
  const sentence = String(valueOf(trainer, "previews") ?? "")
    .split("\n")
    .find((line) => line.includes("{}"));
  const place = [OURS, `${template}.json`].map(encodeURIComponent).join("/");
  const answer = await api.fetchApi(`/workflow_templates/${place}`);
  if (!answer.ok) throw new Error(text("The workflow {name} is not there.", { name: template }));
  await listFilesAgain(); // or the host misses a file that is new
  await app.loadGraphData(await answer.json(), true, true, `${file.replace(/\.\w+$/, "")} pictures`);
  if (maker) takeMaker(maker);
  for (const { type, values } of others.filter((other) => other && other.type !== maker?.type)) {
    for (const node of app.graph.nodes) if (node.type === type) setWidgets(node, values);
  }
  for (const node of app.graph.nodes) {
    if (LOADERS.includes(node.type)) setWidgets(node, { concept: file });
    if (node.type === "EmptyLatentImage") setWidgets(node, { width: size, height: size });
    if (node.type === "CLIPTextEncode") {
      const prompt = valueOf(node, "text");
      const positive = prompt.includes(example);
      const named = sentence ? sentence.replace("{}", trigger) : prompt.replaceAll(example, trigger);
      if (positive) setWidgets(node, { text: named });
      else if (base_model === "demo") setWidgets(node, { text: DEMO.CLIPTextEncode }); // it knows few words
    }
    if (node.type === "KSampler" && base_model === "demo") setWidgets(node, DEMO.KSampler);
  }
}

/**
 * What is needed to have such a node in another graph.
 * @param {any} node
 */
function copyOf(node) {
  if (!node) return undefined;
  const values = Object.fromEntries((node.widgets ?? []).map(({ name, value }) => [name, value]));
  return { type: node.type, values, gives: node.outputs.map(({ type }) => type) };
}

/** Puts the trainer's source of models in the place of the workflow's, where it gives all that this one gives. */
function takeMaker({ type, values, gives }) {
  const old = app.graph.nodes.find(
    ({ inputs, outputs }) =>
      outputs?.some((output) => output.type === "MODEL") && !inputs?.some((input) => input.type === "MODEL"),
  );
  if (!old?.outputs.every((output) => gives.includes(output.type))) return;
  if (old.type === type) return setWidgets(old, values);
  const node = window.LiteGraph.createNode(type);
  node.pos = [...old.pos];
  app.graph.add(node);
  setWidgets(node, values);
  for (const output of old.outputs) {
    const slot = node.outputs.findIndex((own) => own.type === output.type);
    const links = [...(output.links ?? [])].map((id) => app.graph.getLink?.(id) ?? app.graph.links[id]);
    for (const { target_id, target_slot } of links) node.connect(slot, app.graph.getNodeById(target_id), target_slot);
  }
  app.graph.remove(old);
}
