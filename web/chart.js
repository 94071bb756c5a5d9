// The gate's curve as a picture, with what it does to the words that matter.

import { html, svg } from "./element.js";
import { LEAK_LIMIT, gate, gatePath, inRows, percent } from "./gate.js";
import { number, text } from "./texts.js";

const [WIDTH, HEIGHT] = [280, 88];
const PLOT = { left: 32, right: 274, top: 5, bottom: 72 };
const [ROW, GAP] = [12, 6]; // of the labels above the plot
const LONGEST = 16; // letters of a word

const pen = /** @type {CanvasRenderingContext2D} */ (html("canvas").getContext("2d"));
pen.font = "9px Inter, Arial, sans-serif"; // as in perfusion.css

/**
 * Draws the curve into a figure, with a legend of its marks.
 * @param {HTMLElement} figure
 * @param {import("./gate.js").Settings} settings
 * @param {{trigger?: string, superclass?: string, superclass_similarity?: number}} [concept]
 * @param {[string, number][]} [similar] words of the prompt and their similarity
 */
export function drawGate(figure, settings, { trigger, superclass, superclass_similarity } = {}, similar = []) {
  const withShare = (mark) => ({ ...mark, share: gate(mark.at, settings.beta, settings.temperature) });
  const own = trigger || text("the trigger");
  const marks = [
    { at: 1, name: own, kind: "own" },
    { at: superclass_similarity, name: superclass, kind: "superclass" },
    { at: 0, name: text("other words"), kind: "other" },
  ]
    .filter((mark) => Number.isFinite(mark.at))
    .map(withShare);
  const words = similar.map(([word, at]) => withShare({ at, name: word, kind: "word" }));
  const heard = [...marks.slice(0, -1), ...words, ...marks.slice(-1)];
  const what = heard.map(({ name, share }) => `${name} ${percent(share)}`).join(", ");
  const leaks = gate(0, settings.beta, settings.temperature) > LEAK_LIMIT;

  const all = [...marks, ...words].map(({ at }) => at);
  /** @type {[number, number]} */
  const span = [Math.min(0, ...all) - 0.1, Math.max(1, ...all) + 0.1];
  const x = (/** @type {number} */ at) => PLOT.left + ((at - span[0]) / (span[1] - span[0])) * (PLOT.right - PLOT.left);
  const y = (/** @type {number} */ share) => PLOT.bottom - share * (PLOT.bottom - PLOT.top);
  const line = (x1, y1, x2, y2, kind) => svg("line", { x1, y1, x2, y2, class: kind });
  const label = (at, down, words, anchor) => svg("text", { x: at, y: down, "text-anchor": anchor }, words);

  const labels = words.map(({ at, share, name }) => {
    const said = labelOf(name, at);
    return { at: x(at), share, said, width: pen.measureText(said).width };
  });
  const rows = inRows(labels, [PLOT.left, PLOT.right], GAP);
  const above = ROW * Math.max(0, ...rows.map(({ row }) => row + 1));
  const baseline = (/** @type {number} */ row) => PLOT.top - 5 - ROW * row;

  figure.replaceChildren(
    svg(
      "svg",
      { viewBox: `0 ${-above} ${WIDTH} ${HEIGHT + above}`, role: "img", "aria-label": what },
      ...[0, 0.5, 1].flatMap((share) => [
        line(PLOT.left, y(share), PLOT.right, y(share), "perfusion-grid"),
        label(PLOT.left - 4, y(share) + 3, percent(share), "end"),
        label(x(share), HEIGHT - 5, number(share), "middle"),
      ]),
      line(x(settings.beta), PLOT.top, x(settings.beta), PLOT.bottom, "perfusion-beta"),
      svg("path", { d: gatePath(settings, x, y, span), class: "perfusion-curve" }),
      ...rows.map(({ at, share, row }) => line(at, y(share), at, baseline(row) + 2, "perfusion-leader")),
      ...rows.map(({ middle, row, said }) => label(middle, baseline(row), said, "middle")),
      ...[...words, ...marks].map(({ at, share, kind }) =>
        svg("circle", {
          cx: x(at),
          cy: y(share),
          r: kind === "word" ? 3 : 4,
          class: `perfusion-mark perfusion-${kind}${kind === "other" && leaks ? " perfusion-alarm" : ""}`,
        }),
      ),
    ),
    html("figcaption", {}, text("How much of {trigger} each word gets", { trigger: own })),
    html(
      "ul",
      { class: "perfusion-legend", "aria-hidden": "true" }, // the picture's label says the same
      ...marks.map(({ name, share, kind }) =>
        html(
          "li",
          { class: `perfusion-${kind}${kind === "other" && leaks ? " perfusion-alarm" : ""}` },
          html("span", {}, name),
          html("b", {}, percent(share)),
        ),
      ),
    ),
  );
}

/**
 * @param {string} word
 * @param {number} similarity
 */
function labelOf(word, similarity) {
  const letters = [...word];
  const short = letters.length > LONGEST ? `${letters.slice(0, LONGEST - 1).join("")}…` : word;
  return `${short} ${number(similarity, { minimumFractionDigits: 2, maximumFractionDigits: 2 })}`;
}
