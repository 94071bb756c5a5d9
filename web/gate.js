// What a concept's settings mean: the gate σ((x − β) / τ) and the presets. Pure maths, nothing of the page.

import { number, text } from "./texts.js";

/** @typedef {{beta: number, temperature: number, key_lock: number}} Settings */
/** @typedef {Settings & {name: string, meaning: string}} Preset */

/** Above this share the concept visibly changes words that have nothing to do with it. */
export const LEAK_LIMIT = 0.05;

/** @returns {Preset[]} */
export const presets = () => {
  const preset = (name, beta, key_lock, meaning) => ({ name, beta, temperature: 0.15, key_lock, meaning });
  return [
    preset(text("Balanced"), 0.7, 0, text("where to start (in the paper: local key lock)")),
    preset(text("Keep layout"), 0.5, 1, text("composed as with the plain word (in the paper: global key lock)")),
    preset(text("Faithful"), 0.6, 0, text("closer to the photos")),
    preset(text("Editable"), 0.75, 0, text("more room for the rest of the prompt")),
  ];
};

/**
 * How far the concept takes a word over, 0 to 1.
 * @param {number} similarity of the word to the concept; 1 is the concept's own token, 0 unrelated
 * @param {number} beta
 * @param {number} temperature
 */
export const gate = (similarity, beta, temperature) => 1 / (1 + Math.exp((beta - similarity) / temperature));

/**
 * The gate's curve as points of an SVG path.
 * @param {Settings} settings
 * @param {(similarity: number) => number} x
 * @param {(share: number) => number} y
 * @param {[number, number]} span of similarities
 */
export function gatePath({ beta, temperature }, x, y, [from, to], pieces = 80) {
  const points = Array.from({ length: pieces + 1 }, (_, piece) => from + ((to - from) * piece) / pieces);
  return `M${points.map((at) => `${x(at).toFixed(1)} ${y(gate(at, beta, temperature)).toFixed(1)}`).join("L")}`;
}

/**
 * The presets for a concept: ours, and its own where its file recommends something else.
 * @param {Settings | null} [recommended]
 * @returns {Preset[]}
 */
export function presetsOf(recommended) {
  const ours = presets();
  if (!recommended || presetLike(recommended, ours)) return ours;
  return [...ours, { name: text("Its own"), meaning: text("what its file recommends"), ...recommended }];
}

/**
 * The preset that has these settings.
 * @param {Settings} settings
 * @param {Preset[]} presets
 */
export function presetLike(settings, presets) {
  const same = (/** @type {number} */ one, /** @type {number} */ other) => Math.abs(one - other) < 1e-6;
  return presets.find(
    (preset) =>
      same(preset.beta, settings.beta) &&
      same(preset.temperature, settings.temperature) &&
      same(preset.key_lock, settings.key_lock),
  );
}

/**
 * Rows for labels centred on places along a line, so that none overlap and none sticks out; the first row is 0.
 * @template {{at: number, width: number}} T
 * @param {T[]} labels
 * @param {[number, number]} ends of the line
 * @param {number} gap between two in a row
 * @returns {(T & {middle: number, row: number})[]}
 */
export function inRows(labels, [start, end], gap) {
  /** @type {number[]} how far each row is taken */
  const taken = [];
  return [...labels]
    .sort((one, other) => one.at - other.at)
    .map((label) => {
      const half = label.width / 2;
      const middle = Math.min(Math.max(label.at, start + half), end - half);
      const free = taken.findIndex((until) => until + gap <= middle - half);
      const row = free < 0 ? taken.length : free;
      taken[row] = middle + half;
      return { ...label, middle, row };
    });
}

/** @param {number} share 0 to 1 */
export function percent(share) {
  const digits = share > 0 && share < 0.0995 ? 1 : 0;
  return number(share, { style: "percent", minimumFractionDigits: digits, maximumFractionDigits: digits });
}
