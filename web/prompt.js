// In prompts: triggers of the graph's concepts are suggested while typing, and can be inserted from elsewhere.

import { app } from "../../scripts/app.js";
import { html } from "./element.js";
import { allNodes, setWidgets, widgetOf } from "./graph.js";
import { text } from "./texts.js";
import { taught } from "./triggers.js";
import { insertWord, suggestions, wordStart } from "./words.js";

const PROMPTS = ["CLIPTextEncode"];
const BOX_ID = "perfusion-suggestions";

/** Where the caret was in the prompt that was left last. */
let left = { node: /** @type {any} */ (null), caret: 0 };

/**
 * A node, and what is in it if it is a subgraph, whose text may be that of a prompt in it.
 * @param {any} node
 */
const parts = (node) => [node, ...(node.subgraph ? allNodes(node.subgraph) : [])];

/** @param {any} node */
const isPrompt = (node) => parts(node).some(({ type }) => PROMPTS.includes(type));

/**
 * The prompt node that a text area belongs to, in either renderer.
 * @param {EventTarget | null} box
 */
export function promptOf(box) {
  if (!(box instanceof HTMLTextAreaElement)) return undefined;
  const id = /** @type {HTMLElement | null} */ (box.closest("[data-node-id]"))?.dataset.nodeId;
  const has = (node) => (node.widgets ?? []).some(({ element }) => element === box);
  const own = (node) => (id ? String(node.id) === id : parts(node).some(has));
  const node = (app.canvas.graph?.nodes ?? []).find(own);
  return node && isPrompt(node) ? node : undefined;
}

/**
 * Where the value of a subgraph's widget is, in frontends in which that is in the subgraph.
 * @param {any} node
 * @param {any} widget
 * @returns {{node: any, widget: any}}
 */
function origin(node, widget) {
  const inner = widget.sourceNodeId && node.subgraph?.getNodeById(widget.sourceNodeId);
  return inner ? origin(inner, widgetOf(inner, widget.sourceWidgetName)) : { node, widget };
}

/**
 * Puts a trigger into the selected prompt, at its caret if it had one. Returns whether there is such a prompt.
 * @param {string} trigger
 */
export function insertIntoPrompt(trigger) {
  const texts = [...(app.canvas.selectedItems ?? [])]
    .filter(isPrompt)
    .flatMap((node) => node.widgets.filter(({ type }) => type === "customtext").map((widget) => origin(node, widget)));
  if (texts.length !== 1) return false;
  const [{ node, widget }] = texts;
  const caret = left.node === node ? left.caret : widget.value.length;
  setWidgets(node, { [widget.name]: insertWord(widget.value, trigger, caret).text });
  return true;
}

/** The list below a text area in which triggers are chosen. */
class Suggestions {
  #box = html("ul", {
    id: BOX_ID,
    class: "perfusion-suggestions",
    role: "listbox",
    "aria-label": text("Triggers"),
    hidden: true,
  });
  /** @type {HTMLTextAreaElement | null} */
  #area = null;
  /** @type {import("./triggers.js").Taught[]} */
  #found = [];
  #current = 0;
  /** Where they were looked for. */
  #caret = 0;

  constructor() {
    document.body.append(this.#box);
    document.addEventListener("input", (event) => this.#look(event.target));
    document.addEventListener("keydown", (event) => this.#key(event), true);
    document.addEventListener("focusout", (event) => this.#leave(event.target));
    document.addEventListener("selectionchange", () => {
      if (this.#area && this.#area.selectionStart !== this.#caret) this.#close();
    });
    window.addEventListener("wheel", () => this.#close(), { passive: true });
  }

  /** @param {EventTarget | null} target */
  #look(target) {
    const node = promptOf(target);
    if (!node) return;
    const area = /** @type {HTMLTextAreaElement} */ (target);
    const typed = area.value.slice(wordStart(area.value, area.selectionStart), area.selectionStart);
    this.#found = suggestions(taught(), typed);
    if (!this.#found.length) return this.#close();
    this.#area = area;
    this.#caret = area.selectionStart;
    this.#current = 0;
    this.#box.replaceChildren(
      ...this.#found.map(({ trigger, superclass }, index) =>
        html(
          "li",
          {
            id: `${BOX_ID}-${index}`,
            role: "option",
            pointerdown: (event) => event.preventDefault(), // or the text area would lose the focus
            click: () => this.#choose(index),
          },
          html("b", {}, trigger),
          ` ${superclass}`,
        ),
      ),
    );
    const { left, bottom } = area.getBoundingClientRect();
    Object.assign(this.#box.style, { left: `${left}px`, top: `${bottom}px` });
    this.#box.hidden = false;
    area.setAttribute("aria-autocomplete", "list");
    area.setAttribute("aria-controls", BOX_ID);
    this.#mark(0);
  }

  /** @param {number} index */
  #mark(index) {
    this.#current = index;
    [...this.#box.children].forEach((option, at) => option.setAttribute("aria-selected", String(at === index)));
    this.#area?.setAttribute("aria-activedescendant", `${BOX_ID}-${index}`);
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    if (!this.#area || event.target !== this.#area || event.isComposing) return;
    const many = this.#found.length;
    const actions = {
      ArrowDown: () => this.#mark((this.#current + 1) % many),
      ArrowUp: () => this.#mark((this.#current + many - 1) % many),
      Enter: () => this.#choose(this.#current),
      Tab: () => this.#choose(this.#current),
      Escape: () => this.#close(),
    };
    if (!(event.key in actions) || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    actions[event.key]();
  }

  /** @param {number} index */
  #choose(index) {
    const area = /** @type {HTMLTextAreaElement} */ (this.#area);
    const start = wordStart(area.value, area.selectionStart);
    const { text, caret } = insertWord(area.value, this.#found[index].trigger, start, area.selectionStart);
    area.value = text;
    area.setSelectionRange(caret, caret);
    area.dispatchEvent(new Event("input", { bubbles: true })); // the host takes the text over
    this.#close();
  }

  /** @param {EventTarget | null} target */
  #leave(target) {
    const node = promptOf(target);
    if (node) left = { node, caret: /** @type {HTMLTextAreaElement} */ (target).selectionStart };
    this.#close();
  }

  #close() {
    this.#box.hidden = true;
    this.#area?.removeAttribute("aria-activedescendant");
    this.#area = null;
  }
}

app.registerExtension({
  name: "perfusion.prompt",
  setup() {
    new Suggestions();
  },
});
