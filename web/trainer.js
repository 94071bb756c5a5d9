// On the trainer: what it takes before it starts, samples and time left while it runs, and what to do with the outcome.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { closerLook, lossCurve, progress, sampleRow } from "./course.js";
import { html } from "./element.js";
import { allNodes, connectedFamily, nodeOfRun, outputOf, setWidgets, source, valueOf } from "./graph.js";
import { newAround, together } from "./outside.js";
import { addPanel } from "./panel.js";
import { ESTIMATED, estimateIn, isSet, trainingPresets, valuesIn } from "./presets.js";
import { generateWith } from "./product.js";
import { concepts, get, give, listFilesAgain, post } from "./server.js";
import { text } from "./texts.js";
import { warningsIn } from "./warnings.js";

/** @typedef {import("./course.js").Course} Course */

const TRAINER = "PerfusionTrainConcept";

/** The file of each training that was saved, by the training's key. @type {Map<string, string>} */
const savedFiles = new Map();

class TrainerPanel {
  #node;
  #presets = html(
    "div",
    { class: "perfusion-row", role: "group", "aria-label": text("Presets") },
    ...trainingPresets().map(({ name }, at) => html("button", { type: "button", click: () => this.#preset(at) }, name)),
  );
  #estimate = html("p", { class: "perfusion-muted" });
  #estimated = ""; // what was asked last
  #superclass = ""; // that was looked up last
  /** How the server reads it. @type {{superclass: string, locked: string, known: boolean} | undefined} */
  #word;
  /** @type {Record<string, number>} */
  #found = {};
  #warnings = html("ul", { class: "perfusion-warnings" });
  #status = html("p", { role: "status" }, text("Not running."));
  #problem = html("p", { class: "perfusion-badge", role: "alert" });
  #bar = html("progress", { max: 1, value: 0, "aria-label": text("Steps of the training") });
  #look = html("div", { class: "perfusion-look" });
  #rows = html("div", { class: "perfusion-rows", role: "group", "aria-label": text("Samples by step") });
  #loss = html("figure", { class: "perfusion-loss" });
  #stop = html("button", { type: "button", disabled: true, click: () => this.#stopRun() }, text("Stop and keep"));
  #continue = html("button", { type: "button", hidden: true, click: () => this.#goOn() }, text("Continue"));
  #use = html("button", { type: "button", hidden: true, click: () => this.#useIt() }, text("Use it"));
  /** The prompt that is running here. @type {string | undefined} */
  #run;
  #runNode = ""; // the node's id in it
  /** @type {Course | undefined} */
  #course;
  /** The file of a training that was cancelled or failed. */
  #unfinished = "";
  /** The step whose samples are shown large, where the user wants to see another than the latest or the used one. */
  #seen = -1;
  #drawn = ""; // which pictures stand there
  #fit;

  /**
   * @param {any} node
   * @param {any} place the node on which it is shown
   */
  constructor(node, place) {
    this.#node = node;
    this.#stop.title = text("Ends the training after this step; everything behind it runs with what was learned");
    this.#continue.title = text("Goes on to the number of steps that is set");
    this.#use.title = text("Opens the workflow that paints with it");
    const buttons = html("div", { class: "perfusion-row" }, this.#stop, this.#continue, this.#use);
    const pictures = [this.#look, this.#rows, this.#loss];
    const parts = [
      this.#presets,
      this.#estimate,
      this.#warnings,
      this.#status,
      this.#problem,
      this.#bar,
      buttons,
      ...pictures,
    ];
    this.#fit = addPanel(place, "perfusion_training", text("Training"), ...parts, () => this.update());
    this.#fit();
  }

  /** @param {number} at which of the presets */
  #preset(at) {
    setWidgets(this.#node, this.#offered()[at].values);
    this.update();
  }

  #offered() {
    return trainingPresets(connectedFamily(this.#node)?.base_model === "demo");
  }

  /** Looks at how the node is set and wired. */
  update() {
    const value = (/** @type {string} */ name) => valueOf(this.#node, name);
    this.#offered().forEach((preset, at) => {
      const button = /** @type {HTMLButtonElement} */ (this.#presets.children[at]);
      button.title = `${preset.meaning}: ${valuesIn(preset)}`;
      button.setAttribute("aria-pressed", String(isSet(preset, value)));
    });
    const asked = Object.fromEntries(ESTIMATED.map((name) => [name, String(value(name))]));
    const previews = String(value("previews") ?? "")
      .split("\n")
      .filter((line) => line.trim());
    this.#readSuperclass(String(value("superclass") ?? ""));
    const photos = source(this.#node, "IMAGE");
    const folder = photos?.type === "PerfusionLoadPhotos" ? (valueOf(photos, "folder") ?? "") : "";
    const base_model = connectedFamily(this.#node)?.base_model ?? "";
    this.#showEstimate(new URLSearchParams({ ...asked, base_model, folder, previews: String(previews.length) }));
  }

  /** @param {string} words */
  async #readSuperclass(words) {
    if (words === this.#superclass) return;
    this.#superclass = words;
    /** @type {any} */
    const word = await get("superclass", new URLSearchParams({ words })).catch(() => undefined);
    if (words !== this.#superclass) return;
    this.#word = word;
    this.#showWarnings(this.#found);
    this.#fit();
  }

  /** @param {URLSearchParams} asked */
  async #showEstimate(asked) {
    if (String(asked) === this.#estimated) return;
    this.#estimated = String(asked);
    /** @type {any} */
    const found = asked.get("base_model") && (await get("estimate", asked).catch(() => undefined));
    if (String(asked) !== this.#estimated) return;
    this.#estimate.textContent = found ? estimateIn(found) : "";
    if (this.#run === undefined) this.#showWarnings(found?.warnings ?? {});
    this.#fit();
  }

  /** @param {string} run the prompt's id; "" when it is not known yet */
  start(run) {
    this.#run = run;
    this.#course = undefined;
    this.#unfinished = this.#problem.textContent = "";
    this.#seen = -1;
    this.#continue.hidden = this.#use.hidden = true;
    this.#status.textContent = text("Preparing.");
    this.#bar.removeAttribute("value");
    this.#fit();
  }

  /**
   * A training that runs here, or ran.
   * @param {Course} course
   */
  show(course) {
    this.#course = course;
    const { done, total, ended } = course;
    this.#bar.max = total;
    this.#bar.value = done;
    this.#problem.textContent = "";
    this.#runNode = course.node ?? "";
    if (ended) this.#showEnd();
    else {
      this.#stop.disabled = course.stopping;
      this.#status.textContent = course.stopping ? text("Stopping after this step.") : progress(course);
    }
    this.#showWarnings(course.warnings);
    this.#showPictures();
  }

  #showEnd() {
    const { done, total, used, chosen } = this.#course;
    const words = { done, total, step: used };
    this.#stop.disabled = true;
    this.#status.textContent = [
      done < total ? text("Stopped after {done} of {total} steps.", words) : text("{total} steps are done.", words),
      chosen ? text("You chose step {step}.", words) : text("Step {step} is the best.", words),
    ].join(" ");
    this.#continue.hidden = done >= total;
    this.showSaved();
  }

  /** Offers what can be done with a file when there is one. */
  showSaved() {
    this.#use.hidden = !(this.#course?.ended && savedFiles.has(this.#course.training));
    this.#fit();
  }

  #showPictures() {
    const { rows, used, ended, curve } = this.#course;
    const latest = rows.at(-1);
    const shown = rows.find(({ step }) => step === (this.#seen < 0 && ended ? used : this.#seen)) ?? latest;
    const drawn = JSON.stringify([rows, shown, ended, used]);
    if (drawn !== this.#drawn) {
      const buttons = rows.map((row) => sampleRow(row, this.#course, shown, () => this.#choose(row.step)));
      this.#look.replaceChildren(...(shown ? closerLook(shown) : []));
      this.#rows.replaceChildren(...buttons);
      const current = buttons.find((button) => button.hasAttribute("aria-current"));
      if (current) this.#rows.scrollTop = current.offsetTop - this.#rows.clientHeight + current.offsetHeight;
      this.#drawn = drawn;
    }
    this.#loss.replaceChildren(...(curve.length > 1 ? [lossCurve(curve)] : []));
    this.#fit();
  }

  /** @param {Record<string, number>} found */
  #showWarnings(found) {
    this.#found = found;
    const lines = warningsIn(found, this.#word).map((words) => html("li", { class: "perfusion-status" }, words));
    this.#warnings.replaceChildren(...lines);
  }

  /**
   * Shows a step's samples; after the training its checkpoint is the one that is used.
   * @param {number} step
   */
  async #choose(step) {
    if (!this.#course) return; // another training is being prepared
    this.#seen = step;
    this.#showPictures();
    const { ended, training, used } = this.#course;
    if (!ended || step === 0 || step === used) return;
    await this.#ask("choose", { training, step: String(step) });
  }

  async #stopRun() {
    this.#stop.disabled = true;
    try {
      await post("stop", { node: this.#runNode });
      this.#status.textContent = text("Stopping after this step.");
    } catch (error) {
      this.#problem.textContent = error.message;
    }
  }

  async #goOn() {
    const { training } = this.#course ?? {};
    if (training && (await this.#ask("continue", { training }, !this.#unfinished))) return;
    if (!this.#unfinished) return;
    setWidgets(this.#node, { continue_from: this.#unfinished }); // the server has forgotten it, the file has not
    await app.queuePrompt(0);
  }

  /**
   * Asks for another outcome, and runs the graph to have it. Says what the server has against it, and returns whether
   * it has nothing.
   * @param {string} what
   * @param {object} body
   */
  async #ask(what, body, saysWhy = true) {
    try {
      await post(what, body);
    } catch (error) {
      if (saysWhy) this.#problem.textContent = error.message;
      this.#fit();
      return false;
    }
    await app.queuePrompt(0);
    return true;
  }

  async #useIt() {
    const file = savedFiles.get(this.#course.training);
    try {
      await generateWith(this.#node, file, this.#course);
    } catch (error) {
      this.#problem.textContent = error.message;
      this.#fit();
    }
  }

  /**
   * The run went on behind this node, or ended here: without a word where it was cancelled, else with what is wrong.
   * @param {string} [problem]
   */
  async end(problem) {
    if (this.#run === undefined) return;
    this.#run = undefined;
    this.#stop.disabled = true;
    if (problem === undefined) {
      if (!this.#course?.ended) this.#status.textContent = text("Done.");
      return;
    }
    this.#bar.value = 0;
    this.#status.textContent = problem ? "" : text("Stopped.");
    this.#problem.textContent = problem;
    this.#continue.hidden = !this.#course || this.#course.ended || Boolean(problem);
    this.#fit();
    const before = new Set(concepts.list.map(({ file }) => file));
    await listFilesAgain();
    const trigger = valueOf(this.#node, "trigger");
    const kept = concepts.list.find((concept) => concept.trigger === trigger && !before.has(concept.file));
    if (!kept) return;
    const { file } = kept;
    this.#unfinished = file;
    this.#continue.hidden = false;
    this.#status.textContent = text("Stopped. What was learned is in {file}.", { file });
    this.#fit();
  }
}

/** All panels of a trainer as one, by node. @type {WeakMap<object, TrainerPanel>} */
const panels = new WeakMap();

/** @type {WeakMap<object, TrainerPanel[]>} by trainer */
const shown = new WeakMap();

/**
 * @param {any} node
 * @param {any} place the node on which it is shown: itself, or that of a subgraph around it
 */
function addTrainerPanel(node, place) {
  const all = shown.get(node) ?? [];
  all.push(new TrainerPanel(node, place));
  shown.set(node, all);
  if (place === node) panels.set(node, together(all));
}

/** @type {TrainerPanel | undefined} of the node that is running */
let running;

/**
 * What a node has put out: a training's end, or the file of one.
 * @param {any} node
 * @param {any} output
 */
function take(node, output) {
  const [course] = output?.perfusion_training ?? [];
  if (course) panels.get(node)?.show(course);
  const [saved] = output?.perfusion_saved ?? [];
  if (!saved) return;
  if (saved.training) savedFiles.set(saved.training, saved.file);
  give(node, saved.file);
  for (const other of allNodes()) panels.get(other)?.showSaved();
}

/** @param {Record<string, any>} [outputs] as the host remembers them */
function takeAll(outputs) {
  for (const node of allNodes()) {
    const isOld = running && panels.get(node) === running; // what the node put out before it began
    if (!isOld) take(node, outputOf(node, outputs));
  }
}

function updateAll() {
  for (const [around, trainer] of newAround(TRAINER)) addTrainerPanel(trainer, around);
  for (const node of allNodes()) panels.get(node)?.update();
}

app.registerExtension({
  name: "perfusion.trainer",
  nodeCreated(node) {
    if (node.comfyClass === TRAINER && node.addDOMWidget) addTrainerPanel(node, node);
  },
  afterConfigureGraph() {
    updateAll();
    takeAll(app.nodeOutputs);
  },
  onNodeOutputsUpdated: takeAll,
  setup() {
    let run = "";
    const end = (/** @type {string} */ problem) => {
      running?.end(problem);
      running = undefined;
    };
    const move = (/** @type {TrainerPanel | undefined} */ panel) => {
      if (panel === running) return;
      end();
      running = panel;
      panel?.start(run);
    };
    api.addEventListener("execution_start", ({ detail }) => (run = detail.prompt_id));
    api.addEventListener("executing", ({ detail }) => move(panels.get(nodeOfRun(detail))));
    api.addEventListener("perfusion.training", ({ detail }) => {
      const panel = panels.get(nodeOfRun(detail.node));
      if (!panel) return;
      move(panel); // the page may have been loaded, or the graph made anew, since the node began
      panel.show(detail);
    });
    api.addEventListener("executed", ({ detail: { display_node, node, output } }) =>
      take(nodeOfRun(display_node ?? node), output),
    );
    api.addEventListener("graphChanged", updateAll);
    api.addEventListener("execution_interrupted", () => end(""));
    api.addEventListener("execution_error", ({ detail }) => end(detail.exception_message));
  },
});
