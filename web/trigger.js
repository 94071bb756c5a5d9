// A trigger on a panel, to copy or to put into a prompt, and the line that says what became of it.

import { copy, html } from "./element.js";
import { isInPrompts } from "./graph.js";
import { insertIntoPrompt } from "./prompt.js";
import { text } from "./texts.js";

const SAID_FOR = 4000; // milliseconds

/** A line that says something for a while, and else which triggers are in no prompt. */
export class TriggerLine {
  element = html("p", { class: "perfusion-status", role: "status" });
  #changed;
  #said = 0;
  /** @type {string[]} */
  #triggers = [];

  /** @param {() => void} changed to call when its height may be another */
  constructor(changed) {
    this.#changed = changed;
  }

  /** @param {string[]} triggers that are to be in prompts */
  update(triggers) {
    this.#triggers = triggers;
    if (this.#said) return;
    const unused = triggers.filter((trigger) => !isInPrompts(trigger));
    this.element.textContent = unused.length ? text("{trigger} is in no prompt yet.", { trigger: unused[0] }) : "";
  }

  /**
   * The buttons of a trigger.
   * @param {string} trigger
   */
  row(trigger) {
    const button = (/** @type {import("./element.js").Attributes} */ attributes, /** @type {string} */ label) =>
      html("button", { type: "button", ...attributes }, label);
    const title = text("Copy {trigger}", { trigger });
    const insert = text("Put the trigger into the selected prompt");
    return html(
      "div",
      { class: "perfusion-row" },
      button({ class: "perfusion-trigger", title, click: () => this.#copy(trigger) }, trigger),
      button({ title: insert, click: () => this.#insert(trigger) }, text("Insert")),
    );
  }

  /** @param {string} trigger */
  async #copy(trigger) {
    const copied = text("{trigger} is copied.", { trigger });
    this.#say((await copy(trigger)) ? copied : text("The browser does not allow it to be copied."));
  }

  /** @param {string} trigger */
  #insert(trigger) {
    const done = insertIntoPrompt(trigger);
    this.#say(done ? text("It is in the prompt.") : text("Select a CLIP Text Encode node first."));
  }

  /** @param {string} words */
  #say(words) {
    clearTimeout(this.#said);
    this.element.textContent = words;
    this.#changed();
    this.#said = setTimeout(() => {
      this.#said = 0;
      this.update(this.#triggers);
      this.#changed();
    }, SAID_FOR);
  }
}
