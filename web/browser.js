// The sidebar's list of concepts: to find, add to the graph, describe, and delete.

import { app } from "../../scripts/app.js";
import { ORDERS, search, summary } from "./concepts.js";
import { copy, html } from "./element.js";
import { addLoader } from "./insert.js";
import { concepts, thumbnail } from "./server.js";

/** @typedef {import("./concepts.js").Concept} Concept */

const DRAGGED = "application/x-perfusion-concept";

class Browser {
  #words = html("input", {
    type: "search",
    placeholder: "Search",
    "aria-label": "Search concepts",
    input: () => this.#list(),
  });
  #order = html(
    "select",
    { "aria-label": "Sort by", change: () => this.#list() },
    ...Object.keys(ORDERS).map((order) => html("option", { value: order }, order)),
  );
  #status = html("p", { role: "status", class: "perfusion-muted" });
  #undo = html("div");
  #cards = html("ul", { class: "perfusion-cards", "aria-label": "Concepts" });
  /** The file that is being edited. @type {string | undefined} */
  #edited;
  element = html(
    "section",
    { class: "perfusion-browser", "aria-label": "Perfusion concepts" },
    html("h3", {}, "Perfusion concepts"),
    html("div", { class: "perfusion-row perfusion-tools" }, this.#words, this.#order),
    this.#undo,
    this.#status,
    this.#cards,
  );

  constructor() {
    concepts.addEventListener("change", () => this.#list());
    this.#list();
  }

  #list() {
    if (this.#edited && concepts.find(this.#edited)) return; // what is being written stays
    const found = search(concepts.list, this.#words.value, this.#order.value);
    this.#cards.replaceChildren(...found.map((concept) => this.#card(concept)));
    const none = concepts.list.length ? "Nothing is found." : "There is no concept in models/perfusion yet. Train one.";
    this.#status.textContent = concepts.problem || (found.length ? `${found.length} of ${concepts.list.length}` : none);
  }

  /** @param {Concept} concept */
  #card(concept) {
    const { file, name, path, trigger, notes, error } = concept;
    const button = (/** @type {string} */ text, /** @type {string} */ title, /** @type {() => void} */ click) =>
      html("button", { type: "button", title, "aria-label": `${text} ${name}`, click }, text);
    const where = html("p", { class: "perfusion-muted", role: "status" });
    const reveal = async () => where.replaceChildren(html("code", {}, path), ` ${await copy(path)}`);
    const card = html(
      "li",
      {
        class: "perfusion-card",
        draggable: error ? false : "true",
        title: file,
        dragstart: (event) => event.dataTransfer.setData(DRAGGED, file),
      },
      html("div", { class: "perfusion-picture" }, thumbnail(concept)),
      html(
        "div",
        {},
        html("p", {}, html("b", {}, name), " ", trigger && html("code", {}, trigger)),
        html("p", { class: "perfusion-muted" }, summary(concept)),
        (error || notes) && html("p", { class: error ? "perfusion-badge" : "" }, error || notes),
        html(
          "div",
          { class: "perfusion-row" },
          !error && button("Add", "Add a Loader with this concept to the graph", () => addLoader(file)),
          !error && button("Edit", "Change name, trigger and notes", () => this.#edit(card, concept)),
          path && button("Reveal", "Show where the file lies, and copy its path", reveal),
          button("Delete", "Move the file to the trash", () => this.#trash(concept)),
        ),
        where,
      ),
    );
    return card;
  }

  /**
   * @param {HTMLElement} card
   * @param {Concept} concept
   */
  #edit(card, { file, name, trigger, notes }) {
    this.#edited = file;
    const field = (/** @type {string} */ label, /** @type {HTMLElement} */ input) => html("label", {}, label, input);
    const done = () => {
      this.#edited = undefined;
      this.#list();
    };
    const problem = html("p", { class: "perfusion-badge", role: "alert", hidden: true });
    const form = html(
      "form",
      {
        class: "perfusion-form",
        submit: async (event) => {
          event.preventDefault();
          const [newName, newTrigger, newNotes] = form.querySelectorAll("input, textarea");
          try {
            await concepts.change({ file, name: newName.value, trigger: newTrigger.value, notes: newNotes.value });
            done();
          } catch (error) {
            problem.textContent = error.message;
            problem.hidden = false;
          }
        },
        keydown: (event) => {
          event.stopPropagation(); // the graph's own shortcuts
          if (event.key === "Escape") done();
        },
      },
      field("Name", html("input", { value: name, required: true })),
      field("Trigger", html("input", { value: trigger, required: true })),
      field("Notes", html("textarea", { rows: 3 }, notes ?? "")),
      problem,
      html(
        "div",
        { class: "perfusion-row" },
        html("button", {}, "Save"),
        html("button", { type: "button", click: done }, "Cancel"),
      ),
    );
    card.removeAttribute("draggable");
    card.replaceChildren(form);
    form.querySelector("input")?.focus();
  }

  /** @param {Concept} concept */
  async #trash({ file, name }) {
    try {
      const token = await concepts.trash(file);
      const label = `Undo deleting ${name}`;
      const restore = () => this.#restore(token, line);
      const undo = html("button", { type: "button", "aria-label": label, click: restore }, "Undo");
      const line = html("p", { class: "perfusion-row", role: "status" }, `${name} is in the trash.`, undo);
      this.#undo.append(line);
      undo.focus();
    } catch (error) {
      this.#status.textContent = error.message;
    }
  }

  /**
   * @param {string} token
   * @param {HTMLElement} line that offers it
   */
  async #restore(token, line) {
    try {
      await concepts.undo(token);
      line.remove();
      this.#words.focus();
    } catch (error) {
      this.#status.textContent = error.message;
    }
  }
}

app.registerExtension({
  name: "perfusion.browser",
  setup() {
    if (!app.extensionManager?.registerSidebarTab) return;
    /** @type {Browser | undefined} */
    let browser;
    app.extensionManager.registerSidebarTab({
      id: "perfusion",
      icon: "pi pi-star",
      title: "Perfusion",
      tooltip: "Perfusion concepts",
      type: "custom",
      render(place) {
        browser ??= new Browser();
        if (browser.element.parentElement !== place) place.replaceChildren(browser.element);
      },
    });
    document.addEventListener("dragover", (event) => {
      if (isDroppable(event)) event.preventDefault();
    });
    document.addEventListener(
      "drop",
      (event) => {
        if (!isDroppable(event)) return;
        event.preventDefault();
        const [x, y] = app.canvas.convertEventToCanvasOffset(event);
        addLoader(event.dataTransfer.getData(DRAGGED), [x, y]);
      },
      true, // before the host looks for files in it
    );
  },
});

/**
 * Whether this is one of our cards over the graph.
 * @param {DragEvent} event
 */
function isDroppable(event) {
  const over = /** @type {Element} */ (event.target);
  return event.dataTransfer?.types.includes(DRAGGED) && !over.closest(".perfusion-browser");
}
