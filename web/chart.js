// The gate's curve as a picture, with what it does to the words that matter.

import { html, svg } from "./element.js";
import { LEAK_LIMIT, gate, gatePath, percent } from "./gate.js";
import { number, text } from "./texts.js";

const [WIDTH, HEIGHT] = [280, 88];
const PLOT = { left: 32, right: 274, top: 5, bottom: 72 };

/**
 * Draws the curve into a figure, with a legend of its marks.
 * @param {HTMLElement} figure
 * @param {import("./gate.js").Settings} settings
 * @param {{superclass?: string, superclass_similarity?: number}} [concept]
 */
export function drawGate(figure, settings, { superclass, superclass_similarity } = {}) {
  const marks = [
    { at: 1, name: text("its own word"), kind: "own" },
    { at: superclass_similarity, name: text("“{word}”", { word: superclass }), kind: "superclass" },
    { at: 0, name: text("unrelated words"), kind: "other" },
  ]
    .filter((mark) => Number.isFinite(mark.at))
    .map((mark) => ({ ...mark, share: gate(Number(mark.at), settings.beta, settings.temperature) }));
  const leaks = gate(0, settings.beta, settings.temperature) > LEAK_LIMIT;
  const words = marks.map(({ name, share }) => `${name} ${percent(share)}`).join(", ");

  /** @type {[number, number]} */
  const span = [Math.min(-0.1, ...marks.map(({ at }) => at - 0.1)), Math.max(1.1, ...marks.map(({ at }) => at + 0.1))];
  const x = (/** @type {number} */ at) => PLOT.left + ((at - span[0]) / (span[1] - span[0])) * (PLOT.right - PLOT.left);
  const y = (/** @type {number} */ share) => PLOT.bottom - share * (PLOT.bottom - PLOT.top);
  const what = text("How far words become the concept: {words}", { words });
  const line = (x1, y1, x2, y2, kind) => svg("line", { x1, y1, x2, y2, class: kind });
  const label = (at, down, text, anchor) => svg("text", { x: at, y: down, "text-anchor": anchor }, text);

  figure.replaceChildren(
    svg(
      "svg",
      { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": what },
      ...[0, 0.5, 1].flatMap((share) => [
        line(PLOT.left, y(share), PLOT.right, y(share), "perfusion-grid"),
        label(PLOT.left - 4, y(share) + 3, percent(share), "end"),
        label(x(share), HEIGHT - 5, number(share), "middle"),
      ]),
      line(x(settings.beta), PLOT.top, x(settings.beta), PLOT.bottom, "perfusion-beta"),
      svg("path", { d: gatePath(settings, x, y, span), class: "perfusion-curve" }),
      ...marks.map(({ at, share, kind }) =>
        svg("circle", {
          cx: x(at),
          cy: y(share),
          r: 4,
          class: `perfusion-mark perfusion-${kind}${kind === "other" && leaks ? " perfusion-alarm" : ""}`,
        }),
      ),
    ),
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
