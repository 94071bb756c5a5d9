// In prompts: the triggers of the graph's concepts stand on a coloured ground.
//
// The ground is the text area's own background, which scrolls, zooms and stays with it whatever the host does. Where
// the words stand is measured on an unseen copy of the text.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { html } from "./element.js";
import { promptOf } from "./prompt.js";
import { taught } from "./triggers.js";
import { spans } from "./words.js";

const GROUND = "linear-gradient(#3d8bfd66 0 0)";

/** What decides where words stand. */
const LAYOUT = [
  ...["fontFamily", "fontSize", "fontStyle", "fontWeight", "fontStretch", "fontVariant", "fontFeatureSettings"],
  ...["fontKerning", "textRendering", "lineHeight", "letterSpacing", "wordSpacing", "textAlign", "textIndent"],
  ...["textTransform", "tabSize", "direction", "whiteSpace", "overflowWrap", "wordBreak", "lineBreak"],
];

const copy = html("div", { class: "perfusion-copy", "aria-hidden": "true" });

/** How wide the lines are of the text areas that are watched. @type {WeakMap<Element, number>} */
const widths = new WeakMap();

/** For what each was last painted. @type {WeakMap<Element, string>} */
const painted = new WeakMap();

/** @type {Set<HTMLTextAreaElement>} */
const changed = new Set();

const sizes = new ResizeObserver((entries) => {
  for (const { target, contentRect } of entries) {
    if (widths.get(target) === contentRect.width) continue;
    widths.set(target, contentRect.width);
    paintSoon(/** @type {HTMLTextAreaElement} */ (target));
  }
});

/** @param {HTMLTextAreaElement} area */
function watch(area) {
  widths.set(area, 0);
  sizes.observe(area);
  // that the page sets the text is told by no event
  const value = /** @type {PropertyDescriptor} */ (
    Object.getOwnPropertyDescriptor(area, "value") ??
      Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, "value")
  );
  const set = (/** @type {string} */ text) => {
    value.set?.call(area, text);
    paintSoon(area);
  };
  Object.defineProperty(area, "value", { ...value, configurable: true, set });
}

/** @param {HTMLTextAreaElement} area */
function paintSoon(area) {
  if (!changed.size) requestAnimationFrame(paintChanged);
  changed.add(area);
}

function paintChanged() {
  const triggers = taught().map(({ trigger }) => trigger);
  // all are measured before one is painted, or the page would be laid out again for each
  const grounds = [...changed].map((area) => ({ area, ground: groundOf(area, triggers) }));
  changed.clear();
  for (const { area, ground } of grounds) Object.assign(area.style, ground);
}

/**
 * The styles that an area needs and does not have yet.
 * @param {HTMLTextAreaElement} area
 * @param {string[]} triggers
 */
function groundOf(area, triggers) {
  const width = widths.get(area);
  if (!width) return {}; // not to be seen
  const found = promptOf(area) ? spans(area.value, triggers) : [];
  const reason = found.length ? JSON.stringify([area.value, found, width, getComputedStyle(area).font]) : "";
  if (reason === (painted.get(area) ?? "")) return {};
  painted.set(area, reason);
  const boxes = found.length ? boxesOf(area, found) : [];
  /** @type {(one: (box: typeof boxes[number]) => string, last: string) => string} */
  const layers = (one, last) => (boxes.length ? [...boxes.map(one), last].join() : "");
  return {
    backgroundImage: layers(() => GROUND, "none"), // the last layer's place is that of the area's own colour
    backgroundAttachment: layers(() => "local", "scroll"),
    backgroundPosition: layers(({ left, top }) => `${left}px ${top}px`, "0 0"),
    backgroundSize: layers(({ width, height }) => `${width}px ${height}px`, "auto"),
    backgroundRepeat: layers(() => "no-repeat", "repeat"),
  };
}

/**
 * What parts of a text cover of its area; more than one each where they are wrapped.
 * @param {HTMLTextAreaElement} area
 * @param {[number, number][]} parts
 */
function boxesOf(area, parts) {
  const style = getComputedStyle(area);
  for (const name of LAYOUT) copy.style[name] = style[name];
  copy.style.width = `${widths.get(area)}px`;
  copy.textContent = area.value;
  const origin = copy.getBoundingClientRect();
  const [x, y] = [parseFloat(style.paddingLeft) - origin.left, parseFloat(style.paddingTop) - origin.top];
  const range = document.createRange();
  return parts.flatMap(([from, to]) => {
    range.setStart(/** @type {Text} */ (copy.firstChild), from);
    range.setEnd(/** @type {Text} */ (copy.firstChild), to);
    return [...range.getClientRects()].map(({ left, top, width, height }) => {
      return { left: left + x, top: top + y, width, height };
    });
  });
}

/** Looks at all prompts again: there are others, or other concepts, or another font. */
export function paintAll() {
  for (const area of document.querySelectorAll("textarea")) {
    if (!widths.has(area) && promptOf(area)) watch(area);
    if (widths.has(area)) paintSoon(area);
  }
}

app.registerExtension({
  name: "perfusion.highlight",
  afterConfigureGraph: paintAll,
  setup() {
    document.body.append(copy);
    document.addEventListener(
      "input",
      ({ target }) => {
        if (target instanceof HTMLTextAreaElement && widths.has(target)) paintSoon(target);
      },
      true,
    );
    const holdsArea = (/** @type {Node} */ node) =>
      node instanceof Element && (node.matches("textarea") || node.querySelector("textarea"));
    new MutationObserver((records) => {
      if (records.some(({ addedNodes }) => [...addedNodes].some(holdsArea))) paintAll();
    }).observe(document.body, { childList: true, subtree: true });
    // where the host keeps the size of the text
    new MutationObserver(paintAll).observe(document.documentElement, { attributeFilter: ["style"] });
    api.addEventListener("graphChanged", paintAll);
  },
});
