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
const DEMO = { CLIPTextEncode: "", KSampler: { steps: 20, cfg: 3, scheduler: "normal" } };

/**
 * Opens the workflow of the concept's base model with a Loader of the concept, the trainer's model, and a prompt that
 * names the trigger.
 * @param {any} trainer
 * @param {string} file
 * @param {import("./course.js").Course} course
 */
export async function generateWith(trainer, file, { size }) {
  const { trigger, base_model } = concepts.find(file) ?? {};
  if (!trigger) throw new Error(text("{file} is not in models/perfusion.", { file }));
  const { template, example } = TEMPLATES[base_model] ?? OTHERWISE;
  const sentence = String(valueOf(trainer, "previews") ?? "")
    .split("\n")
    .find((line) => line.includes("{}"));
  const place = [OURS, `${template}.json`].map(encodeURIComponent).join("/");
  const answer = await api.fetchApi(`/workflow_templates/${place}`);
  if (!answer.ok) throw new Error(text("The workflow {name} is not there.", { name: template }));
  const workflow = await answer.json();
  const maker = makerOf(trainer);
  // before it is opened, or the host misses the files there; what a subgraph is made of stays in its own workflow
  if (maker && !maker.isSubgraphNode?.()) takeMaker(workflow, maker.serialize());
  const others = ["CLIP", "VAE"].map((type) => source(trainer, type)).filter((other) => other && other !== maker);
  for (const { type, widgets_values } of others.map((other) => other.serialize()))
    for (const node of workflow.nodes) if (node.type === type) node.widgets_values = widgets_values;
  await listFilesAgain(); // or the host misses a file that is new
  await app.loadGraphData(workflow, true, true, `${file.replace(/\.\w+$/, "")} pictures`);
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

/** Puts the trainer's source of models in the place of the workflow's, where it gives all that this one gives. */
function takeMaker(workflow, maker) {
  const old = workflow.nodes.find(
    ({ inputs, outputs }) =>
      outputs?.some((output) => output.type === "MODEL") && !inputs?.some((input) => input.type === "MODEL"),
  );
  const slots = old.outputs.map(({ type }) => maker.outputs.findIndex((own) => own.type === type));
  if (slots.includes(-1)) return;
  for (const link of workflow.links) if (link[1] === old.id) link[2] = slots[link[2]]; // [id, from, its output, to, ...
  const linksOf = (/** @type {number} */ slot) => old.outputs[slots.indexOf(slot)]?.links ?? null;
  const outputs = maker.outputs.map((own, slot) => ({ ...own, links: linksOf(slot) }));
  const inputs = maker.inputs?.map((own) => ({ ...own, link: null }));
  const { id, pos, order } = old;
  Object.assign(old, { ...maker, id, pos, order, inputs, outputs });
}
