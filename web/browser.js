// The sidebar's list of concepts: to find, add to the graph, describe, and delete.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { orderNames, search, summary } from "./concepts.js";
import { EditForm } from "./edit.js";
import { copy, html } from "./element.js";
import { modelFamilies } from "./graph.js";
import { addLoader, showLoader } from "./insert.js";
import { language } from "./language.js";
import { concepts, thumbnail } from "./server.js";
import { text } from "./texts.js";

/** @typedef {import("./concepts.js").Concept} Concept */

const DRAGGED = "application/x-perfusion-concept";

class Browser {
  #words = html("input", {
    type: "search",
    placeholder: text("Search"),
    "aria-label": text("Search concepts"),
    input: () => this.list(),
  });
  #order = html(
    "select",
    { "aria-label": text("Sort by"), change: () => this.list() },
    ...Object.entries(orderNames()).map(([value, name]) => html("option", { value }, name)),
  );
  #fitting = this.#switch("fitting", text("Only for this model"), text("For the models in the graph"));
  #finished = this.#switch("finished", text("Hide unfinished"), text("Trainings that were cut short"));
  #families = "";
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
    html("div", { class: "perfusion-row" }, this.#fitting.label, this.#finished.label),
    this.#undo,
    this.#status,
    this.#cards,
  );

  constructor() {
    this.list();
  }

  /** Lists again what fits, when other models are in the graph. */
  followGraph() {
    if (this.#fitting.box.checked && modelFamilies().join() !== this.#families) this.list();
  }

  /**
   * A switch that the browser remembers.
   * @param {string} key
   * @param {string} words
   * @param {string} title
   */
  #switch(key, words, title) {
    const place = `Perfusion.${key}`;
    const change = () => {
      localStorage.setItem(place, String(box.checked));
      this.list();
    };
    const box = html("input", { type: "checkbox", role: "switch", change });
    box.checked = localStorage.getItem(place) === "true";
    return { box, label: html("label", { class: "perfusion-switch", title }, box, words) };
  }

  list() {
    const focused = /** @type {HTMLElement | null} */ (document.activeElement);
    const families = this.#fitting.box.checked ? modelFamilies() : [];
    this.#families = families.join();
    const only = { families, finished: this.#finished.box.checked };
    const found = search(concepts.list, this.#words.value, this.#order.value, only);
    this.#cards.replaceChildren(...found.map((concept) => this.#edited.get(concept.file) ?? this.#card(concept)));
    if (this.#cards.contains(focused)) focused?.focus(); // what is being written is where it was
    const [many, all] = [found.length, concepts.list.length];
    const none = all ? text("Nothing is found.") : text("There is no concept in models/perfusion yet. Train one.");
    this.#status.textContent = concepts.problem || (many ? text("{many} of {all}", { many, all }) : none);
  }

  /** @param {Concept} concept */
  #card(concept) {
    const { file, name, path, trigger, notes, tags, error } = concept;
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
        tags?.length && html("div", { class: "perfusion-row" }, ...tags.map((tag) => this.#tag(tag))),
        (error || notes) && html("p", { class: error ? "perfusion-badge" : "" }, error || notes),
        html(
          "div",
          { class: "perfusion-row" },
          !error && button(text("Add"), text("Add a Loader with this concept to the graph"), () => this.#add(concept)),
          !error &&
            button(text("Edit"), text("Change name, trigger, tags, notes and picture"), () =>
              this.#edit(card, concept),
            ),
          path && button(text("Reveal"), text("Show where the file lies, and copy its path"), reveal),
          button(text("Delete"), text("Move the file to the trash"), () => this.#trash(concept)),
        ),
        where,
      ),
    );
    return card;
  }

  /** @param {string} tag */
  #tag(tag) {
    const click = () => {
      this.#words.value = tag;
      this.list();
    };
    return html("button", { type: "button", class: "perfusion-tag", title: text("Search for it"), click }, tag);
  }

  /** @param {Concept} concept */
  #add({ file, name }) {
    if (showLoader(file)) this.#status.textContent = text("{name} is in the graph already: it is selected.", { name });
  }

  /**
   * @param {HTMLElement} card
   * @param {Concept} concept
   */
  #edit(card, concept) {
    this.#edited.set(concept.file, card);
    const { element } = new EditForm(concept, (renamed) => {
      this.#edited.delete(concept.file);
      this.list();
      if (renamed) this.#offerOldName(concept, renamed);
    });
    card.removeAttribute("draggable");
    card.replaceChildren(element);
    element.querySelector("input")?.focus();
  }

  /**
   * @param {Concept} before
   * @param {Concept} now
   */
  #offerOldName(before, now) {
    const called = text("{before} is now {name}.", { before: before.name, name: now.name });
    const label = text("Undo renaming {name}", { name: now.name });
    const stem = /** @type {string} */ (before.file.split(/[\\/]/).at(-1)).replace(/\.safetensors$/, "");
    this.#offer(called, label, async () => {
      const { file } = await concepts.rename(now.file, stem);
      if (before.name !== stem) await concepts.change({ file, name: before.name });
    });
  }

  /** @param {Concept} concept */
  async #trash({ file, name }) {
    try {
      const token = await concepts.trash(file);
      const label = text("Undo deleting {name}", { name });
      this.#offer(text("{name} is in the trash.", { name }), label, () => concepts.undo(token));
    } catch (error) {
      this.#status.textContent = error.message;
    }
  }

  /**
   * Says what was done, with a button that undoes it.
   * @param {string} done
   * @param {string} label
   * @param {() => Promise<void>} undo
   */
  #offer(done, label, undo) {
    const click = async () => {
      try {
        await undo();
        line.remove();
        this.#words.focus();
      } catch (error) {
        this.#status.textContent = error.message;
      }
    };
    const button = html("button", { type: "button", "aria-label": label, click }, text("Undo"));
    const line = html("p", { class: "perfusion-row", role: "status" }, done, button);
    this.#undo.append(line);
    button.focus();
  }
}

app.registerExtension({
  name: "perfusion.browser",
  setup() {
    if (!app.extensionManager?.registerSidebarTab) return;
    let browser = new Browser();
    /** @type {HTMLElement | undefined} */
    let place;
    const show = () => {
      if (browser.element.parentElement !== place) place?.replaceChildren(browser.element);
    };
    app.extensionManager.registerSidebarTab({
      id: "perfusion",
      icon: "pi pi-star",
      title: "Perfusion",
      tooltip: "Perfusion concepts",
      type: "custom",
      render(where) {
        place = where;
        show();
      },
    });
    concepts.addEventListener("change", () => browser.list());
    api.addEventListener("graphChanged", () => browser.followGraph());
    language.addEventListener("change", () => {
      browser = new Browser();
      show();
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
