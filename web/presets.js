// The trainer's presets, and what a training is said to take. Pure: nothing of the page.

import { amount, number, text } from "./texts.js";
import { duration } from "./time.js";

const PAPER = {
  steps: 400,
  batch_size: 4,
  accumulation: 4,
  learning_rate_values: 0.03,
  learning_rate_schedule: "constant",
  checkpoint_every: 50,
  low_memory: false,
  key_freedom: 0,
};

// On the demo model four pictures a step are enough, and locked keys cost likeness. Values that learn faster than this
// become large ones, which spoil pictures of several things.
const DEMO = { accumulation: 1, learning_rate_values: 0.02, key_freedom: 1 };
const DEMO_FALLING = { ...DEMO, learning_rate_values: 0.04 };

/** @typedef {{name: string, meaning: string, values: Record<string, number | string | boolean>}} Preset */

/**
 * @param {boolean} demo whether the model is the demo model
 * @returns {Preset[]}
 */
export const trainingPresets = (demo = false) => [
  {
    name: text("Quick look"),
    meaning: text("Rough, in a sixteenth of the time: to see whether photos and words are right"),
    values: {
      ...PAPER,
      ...(demo && DEMO),
      steps: 100,
      accumulation: 1,
      learning_rate_values: 0.05,
      checkpoint_every: 25,
    },
  },
  { name: text("Normal"), meaning: text("What the paper does"), values: { ...PAPER, ...(demo && DEMO) } },
  {
    name: text("Best"),
    meaning: text("Twice the steps, with learning rates that fall to zero"),
    values: {
      ...PAPER,
      steps: 800,
      learning_rate_values: 0.06,
      learning_rate_schedule: "cosine",
      checkpoint_every: 100,
      ...(demo && DEMO_FALLING),
    },
  },
  {
    name: text("Low memory"),
    meaning: text("As Normal, one photo at a time: slower, for small cards"),
    values: { ...PAPER, low_memory: true, ...(demo && DEMO) },
  },
];

/** What the estimate asks of the node's widgets. */
export const ESTIMATED = [
  "steps",
  "batch_size",
  "accumulation",
  "checkpoint_every",
  "resolution",
  "low_memory",
  "gradient_checkpointing",
];

/**
 * @param {{seconds: number, bytes: number, device_bytes: number}} estimate
 */
export function estimateIn({ seconds, bytes, device_bytes }) {
  const gigabytes = (/** @type {number} */ value) =>
    amount(value / 2 ** 30, "gigabyte", { maximumFractionDigits: value < 10 * 2 ** 30 ? 1 : 0 });
  const values = { time: duration(seconds), memory: gigabytes(bytes), there: gigabytes(device_bytes) };
  if (bytes <= device_bytes) return text("About {time} and {memory} of memory.", values);
  return text("About {time} and {memory} of memory, but there are {there}. Choose Low memory.", values);
}

/**
 * Whether widgets are set as in a preset.
 * @param {Preset} preset
 * @param {(name: string) => unknown} valueOf
 */
export const isSet = ({ values }, valueOf) => Object.entries(values).every(([name, value]) => valueOf(name) === value);

/** @param {Preset} preset */
export const valuesIn = ({ values }) =>
  Object.entries(values)
    .map(([name, value]) => `${name} ${typeof value === "number" ? number(value) : value}`)
    .join(", ");
