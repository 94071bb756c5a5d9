// Concept files as the server lists them: to find, to sort and to describe. Pure: nothing of the page.

import { amount, spoken, text } from "./texts.js";

/**
 * @typedef {object} Concept
 * @property {string} file relative to the model folder, as the Loader names it
 * @property {string} name
 * @property {string} [path] where it lies on the server
 * @property {number} [bytes]
 * @property {number} [modified] seconds since 1970
 * @property {string} [trigger]
 * @property {string} [superclass]
 * @property {string} [base_model] "sd1", "sd2", "sdxl", "anima", "cosmos-predict2", "demo" or free text
 * @property {string} [date]
 * @property {string} [notes]
 * @property {string[]} [tags]
 * @property {import("./gate.js").Settings | null} [recommended]
 * @property {boolean} [has_thumbnail]
 * @property {number} [superclass_similarity] where the superclass word stands on the gate's scale
 * @property {string} [error] why the file cannot be read
 */

const FAMILIES = {
  sd1: "SD 1.x",
  sd2: "SD 2.x",
  sdxl: "SDXL",
  anima: "Anima",
  "cosmos-predict2": "Cosmos-Predict2",
  wan: "Wan",
  "ltx-video": "LTX-Video",
  "pixart-alpha": "PixArt Alpha",
  "pixart-sigma": "PixArt Sigma",
  "qwen-image": "Qwen-Image",
  "z-image": "Z-Image",
  "lumina-2": "Lumina 2",
  flux: "Flux",
  "flux-2-klein": "Flux 2 Klein",
  sd3: "SD3",
};

/**
 * Names by which checkpoints usually tell their family; the first that is found counts. A version alone tells it only
 * where a name begins with it: elsewhere it may be the model's own.
 */
const FAMILY_OF_NAME = [
  [/xl|illustrious|pony|noob/, "sdxl"],
  [/(?<![a-z])anima(?![a-z])/, "anima"],
  [/cosmos[-_. ]?predict2/, "cosmos-predict2"],
  [/(?<![a-z])sd[-_. ]?1|(?<![^/\\])v1[-_.][1-5]|stable-diffusion-v?1/, "sd1"],
  [/(?<![a-z])sd[-_. ]?2|(?<![^/\\])v2[-_.][01]|stable-diffusion-v?2/, "sd2"],
];

/** @type {Record<string, (one: Concept, other: Concept) => number>} */
const ORDERS = {
  newest: (one, other) => (other.modified ?? 0) - (one.modified ?? 0),
  name: (one, other) => one.name.localeCompare(other.name, undefined, { numeric: true }),
  trigger: (one, other) => (one.trigger ?? "").localeCompare(other.trigger ?? "", undefined, { numeric: true }),
  model: (one, other) => family(one.base_model).localeCompare(family(other.base_model)) || ORDERS.name(one, other),
};

/** What the ways to sort are called. */
export const orderNames = () => ({
  newest: text("newest"),
  name: text("name"),
  trigger: text("trigger"),
  model: text("model"),
});

/**
 * The concepts in which every word is found somewhere, in order.
 * @param {Concept[]} concepts
 * @param {string} words
 * @param {string} order one of ORDERS
 * @param {{families?: string[], finished?: boolean}} [only] those for these base_models; those trained to the end
 */
export function search(concepts, words, order, { families = [], finished = false } = {}) {
  const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
  const found = concepts.filter((concept) => {
    const { file, name, trigger, superclass, base_model, notes, tags } = concept;
    if (families.length && !families.includes(base_model ?? "")) return false;
    if (finished && isUnfinished(concept)) return false;
    const texts = [file, name, trigger, superclass, base_model, family(base_model), notes, ...(tags ?? [])];
    const all = texts.join("\n").toLowerCase();
    return wanted.every((word) => all.includes(word));
  });
  return found.sort(ORDERS[order] ?? ORDERS.newest);
}

/**
 * Whether it is what a training left that was cut short.
 * @param {Concept} concept
 */
export const isUnfinished = ({ file }) => /-unfinished(-\d+)?\.safetensors$/.test(file);

/** @param {string} [base_model] */
export const family = (base_model = "") =>
  base_model === "demo" ? text("demo model") : (FAMILIES[base_model] ?? base_model);

/**
 * The base_model that a checkpoint's name tells of, or undefined.
 * @param {string} checkpoint
 */
export function familyOfCheckpoint(checkpoint) {
  return FAMILY_OF_NAME.find(([pattern]) => pattern.test(checkpoint.toLowerCase()))?.[1];
}

/** @param {number} bytes */
export function size(bytes) {
  if (bytes < 1000) return amount(bytes, "byte", { unitDisplay: "long" });
  if (bytes < 999_500) return amount(bytes / 1000, "kilobyte", { maximumFractionDigits: 0 });
  return amount(bytes / 1e6, "megabyte", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
}

/**
 * The day a concept was made, in the reader's way to write it.
 * @param {Concept} concept
 */
export function day({ date, modified }) {
  const made = new Date(date || (modified ?? 0) * 1000);
  if (Number.isNaN(made.getTime())) return date ?? "";
  const timeZone = date ? "UTC" : undefined; // as files have it
  return made.getTime() ? made.toLocaleDateString(spoken(), { dateStyle: "medium", timeZone }) : "";
}

/**
 * One line: what it is, for which model, how large, and when it was made.
 * @param {Concept} concept
 */
export function summary(concept) {
  const { superclass, base_model, bytes } = concept;
  const unfinished = isUnfinished(concept) ? text("unfinished") : "";
  const parts = [superclass, family(base_model), bytes ? size(bytes) : "", day(concept), unfinished];
  return parts.filter(Boolean).join(" · ");
}
