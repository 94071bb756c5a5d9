// The form in which a concept is described: its name, which is its file's, trigger, tags, notes and picture.

import { html } from "./element.js";
import { hasLastPicture, lastPicture } from "./pictures.js";
import { concepts, thumbnail } from "./server.js";
import { text } from "./texts.js";

/** @typedef {import("./concepts.js").Concept} Concept */

export class EditForm {
  #concept;
  #done;
  #name;
  #trigger;
  #tags;
  #notes;
  #picture = html("div", { class: "perfusion-picture" });
  /** A new picture as a data URL. */
  #drawn = "";
  #alike = html("p", { class: "perfusion-badge", role: "alert", hidden: true });
  #problem = html("p", { class: "perfusion-badge", role: "alert", hidden: true });
  #save = html("button", {}, text("Save"));
  element;

  /**
   * @param {Concept} concept
   * @param {(renamed?: Concept) => void} done called when it is closed, with the concept if its file has a new name
   */
  constructor(concept, done) {
    this.#concept = concept;
    this.#done = done;
    this.#name = html("input", { value: concept.name, required: true });
    this.#trigger = html("input", { value: concept.trigger, required: true, input: () => this.#compare() });
    this.#tags = html("input", { value: concept.tags?.join(", "), placeholder: text("separated by commas") });
    this.#notes = html("textarea", { rows: 3 }, concept.notes ?? "");
    this.#picture.append(thumbnail(concept));
    const draw = { type: "button", disabled: !hasLastPicture(), click: () => this.#draw() };
    const title = hasLastPicture() ? "" : text("There is none yet: run a workflow that makes pictures.");
    const field = (/** @type {string} */ label, /** @type {HTMLElement} */ input) => html("label", {}, label, input);
    this.element = html(
      "form",
      {
        class: "perfusion-form",
        submit: (event) => this.#submit(event),
        keydown: (event) => {
          event.stopPropagation(); // the graph's own shortcuts
          if (event.key === "Escape") done();
        },
      },
      field(text("Name"), this.#name),
      field(text("Trigger"), this.#trigger),
      this.#alike,
      field(text("Tags"), this.#tags),
      field(text("Notes"), this.#notes),
      html(
        "div",
        { class: "perfusion-head" },
        this.#picture,
        html("button", { ...draw, title }, text("Take the last picture")),
      ),
      this.#problem,
      html(
        "div",
        { class: "perfusion-row" },
        this.#save,
        html("button", { type: "button", click: () => done() }, text("Cancel")),
      ),
    );
    this.#compare();
  }

  /** Tells of another concept with the same trigger. */
  #compare() {
    const trigger = this.#trigger.value.trim().normalize("NFC").toLowerCase();
    const other = concepts.list.find(
      (it) => it.file !== this.#concept.file && it.trigger && it.trigger.toLowerCase() === trigger,
    );
    this.#alike.hidden = !other;
    this.#alike.textContent = other
      ? text("{name} has this trigger too: only one of them can be in a picture.", { name: other.name })
      : "";
    this.#save.textContent = other ? text("Save all the same") : text("Save");
  }

  async #draw() {
    this.#drawn = await lastPicture();
    this.#picture.replaceChildren(html("img", { src: this.#drawn, alt: text("The last picture") }));
  }

  /** @param {Event} event */
  async #submit(event) {
    event.preventDefault();
    const { file, name } = this.#concept;
    const changes = { file, trigger: this.#trigger.value, notes: this.#notes.value, tags: this.#tags.value };
    const picture = this.#drawn ? { thumbnail: this.#drawn.split(",")[1] } : {};
    try {
      await concepts.change({ ...changes, ...picture });
      const asked = this.#name.value.trim();
      this.#done(asked === name ? undefined : await concepts.rename(file, asked));
    } catch (error) {
      this.#problem.textContent = error.message;
      this.#problem.hidden = false;
    }
  }
}
