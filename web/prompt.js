// In prompts: triggers of the graph's concepts are suggested while typing, and can be inserted from elsewhere.

import { app } from "../../scripts/app.js";
import { html } from "./element.js";
import { LOADERS, allNodes, setWidgets, widgetOf } from "./graph.js";
import { concepts } from "./server.js";
import { text } from "./texts.js";
import { insertWord, suggestions, wordStart } from "./words.js";

const PROMPTS = ["CLIPTextEncode"];
const BOX_ID = "perfusion-suggestions";

/** Where the caret was in the prompt that was left last. */
let left = { node: /** @type {any} */ (null), caret: 0 };

/**
 * The prompt node that a text area belongs to, in either renderer.
 * @param {EventTarget | null} box
 */
export function promptOf(box) {
  if (!(box instanceof HTMLTextAreaElement)) return undefined;
  const id = /** @type {HTMLElement | null} */ (box.closest("[data-node-id]"))?.dataset.nodeId;
  const own = (node) => (id ? String(node.id) === id : (node.widgets ?? []).some(({ element }) => element === box));
  const node = (app.canvas.graph?.nodes ?? []).find(own);
  return PROMPTS.includes(node?.type) ? node : undefined;
}

/**
 * Puts a trigger into the selected prompt, at its caret if it had one. Returns whether there is such a prompt.
 * @param {string} trigger
 */
export function insertIntoPrompt(trigger) {
  const selected = Object.values(app.canvas.selected_nodes ?? {}).filter((node) => PROMPTS.includes(node.type));
  if (selected.length !== 1) return false;
  const [node] = selected;
  const { value } = widgetOf(node, "text");
  const caret = left.node === node ? left.caret : value.length;
  setWidgets(node, { text: insertWord(value, trigger, caret).text });
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
  /** @type {{trigger: string, superclass: string}[]} */
  #found = [];
  #current = 0;

  constructor() {
    document.body.append(this.#box);
    document.addEventListener("input", (event) => this.#look(event.target));
    document.addEventListener("keydown", (event) => this.#key(event), true);
    document.addEventListener("focusout", (event) => this.#leave(event.target));
    window.addEventListener("wheel", () => this.#close(), { passive: true });
  }

  /** @param {EventTarget | null} target */
  #look(target) {
    const node = promptOf(target);
    if (!node) return;
    const area = /** @type {HTMLTextAreaElement} */ (target);
    const typed = area.value.slice(wordStart(area.value, area.selectionStart), area.selectionStart);
    this.#found = suggestions(loadedConcepts(), typed);
    if (!this.#found.length) return this.#close();
    this.#area = area;
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
    if (!(event.key in actions) || event.ctrlKey || event.metaKey || event.altKey) return;
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

/** Those that nodes of the graph load, each once. */
export function loadedConcepts() {
  const files = allNodes()
    .filter((node) => LOADERS.includes(node.type))
    .map((node) => widgetOf(node, "concept")?.value);
  return [...new Set(files)].map((file) => concepts.find(file)).filter((concept) => concept?.trigger);
}

app.registerExtension({
  name: "perfusion.prompt",
  setup() {
    new Suggestions();
  },
});
