// The sidebar's list of concepts: to find, add to the graph, describe, and delete.

import { app } from "../../scripts/app.js";
import { orderNames, search, summary } from "./concepts.js";
import { copy, html } from "./element.js";
import { addLoader } from "./insert.js";
import { concepts, thumbnail } from "./server.js";
import { spoken, text } from "./texts.js";

/** @typedef {import("./concepts.js").Concept} Concept */

const DRAGGED = "application/x-perfusion-concept";

class Browser {
  #words = html("input", {
    type: "search",
    placeholder: text("Search"),
    "aria-label": text("Search concepts"),
    input: () => this.#list(),
  });
  #order = html(
    "select",
    { "aria-label": text("Sort by"), change: () => this.#list() },
    ...Object.entries(orderNames()).map(([value, name]) => html("option", { value }, name)),
  );
  #status = html("p", { role: "status", class: "perfusion-muted" });
  #undo = html("div");
  #cards = html("ul", { class: "perfusion-cards", "aria-label": text("Concepts") });
  /** The cards that are being edited, by file. @type {Map<string, HTMLElement>} */
  #edited = new Map();
  element = html(
    "section",
    { class: "perfusion-browser", "aria-label": text("Perfusion concepts") },
    html("h3", {}, text("Perfusion concepts")),
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
    const focused = /** @type {HTMLElement | null} */ (document.activeElement);
    const found = search(concepts.list, this.#words.value, this.#order.value);
    this.#cards.replaceChildren(...found.map((concept) => this.#edited.get(concept.file) ?? this.#card(concept)));
    if (this.#cards.contains(focused)) focused?.focus(); // what is being written is where it was
    const [many, all] = [found.length, concepts.list.length];
    const none = all ? text("Nothing is found.") : text("There is no concept in models/perfusion yet. Train one.");
    this.#status.textContent = concepts.problem || (many ? text("{many} of {all}", { many, all }) : none);
  }

  /** @param {Concept} concept */
  #card(concept) {
    const { file, name, path, trigger, notes, error } = concept;
    const button = (/** @type {string} */ action, /** @type {string} */ title, /** @type {() => void} */ click) => {
      const label = text("{action} {name}", { action, name });
      return html("button", { type: "button", title, "aria-label": label, click }, action);
    };
    const where = html("p", { class: "perfusion-muted", role: "status" });
    const reveal = async () => {
      const end = (await copy(path)) ? text("Copied.") : text("The browser does not allow it to be copied.");
      where.replaceChildren(html("code", {}, path), ` ${end}`);
    };
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
          !error && button(text("Add"), text("Add a Loader with this concept to the graph"), () => addLoader(file)),
          !error && button(text("Edit"), text("Change name, trigger and notes"), () => this.#edit(card, concept)),
          path && button(text("Reveal"), text("Show where the file lies, and copy its path"), reveal),
          button(text("Delete"), text("Move the file to the trash"), () => this.#trash(concept)),
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
    this.#edited.set(file, card);
    const field = (/** @type {string} */ label, /** @type {HTMLElement} */ input) => html("label", {}, label, input);
    const done = () => {
      this.#edited.delete(file);
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
      field(text("Name"), html("input", { value: name, required: true })),
      field(text("Trigger"), html("input", { value: trigger, required: true })),
      field(text("Notes"), html("textarea", { rows: 3 }, notes ?? "")),
      problem,
      html(
        "div",
        { class: "perfusion-row" },
        html("button", {}, text("Save")),
        html("button", { type: "button", click: done }, text("Cancel")),
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
      const label = text("Undo deleting {name}", { name });
      const restore = () => this.#restore(token, line);
      const undo = html("button", { type: "button", "aria-label": label, click: restore }, text("Undo"));
      const gone = text("{name} is in the trash.", { name });
      const line = html("p", { class: "perfusion-row", role: "status" }, gone, undo);
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
    /** @type {Browser} */
    let browser;
    let language = ""; // of the browser
    app.extensionManager.registerSidebarTab({
      id: "perfusion",
      icon: "pi pi-star",
      title: "Perfusion",
      tooltip: "Perfusion concepts",
      type: "custom",
      render(place) {
        if (language !== spoken()) browser = new Browser();
        language = spoken();
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
