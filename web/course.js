// How a training goes, in pictures: the samples of one checkpoint, large, those of all in rows, and the loss.

import { api } from "../../scripts/api.js";
import { html, svg } from "./element.js";
import { number, spoken, text } from "./texts.js";
import { duration } from "./time.js";

/**
 * What the server says of a training.
 * @typedef {{step: number, images: Record<string, string>[]}} Row sample pictures of a checkpoint
 * @typedef {object} Course
 * @property {string | null} node that it runs in, as the run calls it
 * @property {string} training its key
 * @property {number} size of its pictures, in pixels
 * @property {number} done steps
 * @property {number} total
 * @property {number | null} [left] seconds
 * @property {boolean} stopping
 * @property {boolean} ended
 * @property {number[]} curve the loss, smoothed
 * @property {Row[]} rows
 * @property {number | null} used the step whose checkpoint is given
 * @property {number | null} chosen the same, where the user chose it
 * @property {Record<string, number>} warnings
 */

const [WIDTH, HEIGHT, MARGIN] = [280, 36, 2];

/** @param {Record<string, string>} image */
const address = (image) => api.apiURL(`/view?${new URLSearchParams(image)}`);

/** @param {Row} row */
const titleOf = ({ step }) => (step ? text("Step {step}", { step }) : text("Before the training"));

/**
 * The samples of a row, large, under its title. A click opens one in a window of its own.
 * @param {Row} row
 */
export function closerLook(row) {
  const pictures = row.images.map((image) =>
    html("a", { href: address(image), target: "_blank" }, html("img", { src: address(image), alt: titleOf(row) })),
  );
  const columns = pictures.length > 1 ? 2 : 1;
  const grid = html("div", { class: "perfusion-samples", style: `--perfusion-columns: ${columns}` }, ...pictures);
  return [html("p", { class: "perfusion-muted" }, titleOf(row)), grid];
}

/**
 * A row of samples as a button.
 * @param {Row} row
 * @param {Course} course
 * @param {Row | undefined} shown
 * @param {() => void} click
 */
export function sampleRow(row, { ended, used, chosen }, shown, click) {
  const note = row.step !== used || !ended ? "" : chosen ? text("chosen") : text("best");
  const label = note ? `${titleOf(row)} (${note})` : titleOf(row);
  const use = ended && row.step > 0;
  const title = use ? text("Click to use the concept as it was after this step") : text("Click to look closer");
  const pictures = row.images.map((image) => html("img", { src: address(image), alt: "" }));
  const [current, pressed] = [row === shown ? "true" : undefined, String(ended && row.step === used)];
  return html(
    "button",
    { type: "button", class: "perfusion-samples-row", title, "aria-pressed": pressed, "aria-current": current, click },
    html("span", {}, label),
    html("span", { class: "perfusion-strip" }, ...pictures),
  );
}

/**
 * The loss so far as a small line.
 * @param {number[]} curve
 */
export function lossCurve(curve) {
  const [low, high] = [Math.min(...curve), Math.max(...curve)];
  const x = (/** @type {number} */ at) => MARGIN + (at / Math.max(curve.length - 1, 1)) * (WIDTH - 2 * MARGIN);
  const y = (/** @type {number} */ value) =>
    HEIGHT - MARGIN - ((value - low) / (high - low || 1)) * (HEIGHT - 2 * MARGIN);
  const points = curve.map((value, at) => `${x(at).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
  const digits = { minimumFractionDigits: 4, maximumFractionDigits: 4 };
  const ends = { first: number(curve[0], digits), last: number(curve.at(-1) ?? 0, digits) };
  const label = text("Loss: from {first} to {last}", ends);
  return svg(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label },
    svg("title", {}, label),
    svg("polyline", { points, class: "perfusion-curve", "vector-effect": "non-scaling-stroke" }),
  );
}

/**
 * Where a training is, in words.
 * @param {Course} course
 */
export function progress({ done, total, left }) {
  if (left == null) return text("Step {done} of {total}", { done, total });
  const end = new Date(Date.now() + left * 1000).toLocaleTimeString(spoken(), { timeStyle: "short" });
  return text("Step {done} of {total}, {left} left, until {end}", { done, total, left: duration(left), end });
}
