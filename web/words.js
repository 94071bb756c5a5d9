// Triggers in prompts. Pure: nothing of the page.

/** What cannot be part of a trigger, and so ends the word before the caret. */
const BREAK = /[\s()[\]{}:,\\"]/;

/**
 * Where triggers stand in a text, from and to. As the text encoder reads it: without regard to case, not as a part of a
 * longer word, and of triggers that begin alike the longest.
 * @param {string} text
 * @param {string[]} triggers
 * @returns {[number, number][]}
 */
export function spans(text, triggers) {
  if (!triggers.length) return [];
  const words = [...triggers].sort((one, other) => other.length - one.length).map(wholeWord);
  const { composed, places } = compose(text);
  const found = composed.matchAll(new RegExp(words.join("|"), "giu"));
  return [...found].map(({ 0: { length }, index }) => [places[index], places[index + length]]);
}

/**
 * A text in Unicode's form NFC, in which triggers are, and where in the text each of its characters begins.
 * @param {string} text
 */
function compose(text) {
  let composed = "";
  /** @type {number[]} */
  const places = [];
  for (const { segment, index } of new Intl.Segmenter().segment(text)) {
    const one = segment.normalize("NFC");
    const whole = one === segment;
    for (let at = 0; at < one.length; at++) places.push(whole ? index + at : index);
    composed += one;
  }
  return { composed, places: [...places, text.length] };
}

/** @param {string} trigger */
function wholeWord(trigger) {
  const before = /^[\p{L}\p{N}_]/u.test(trigger) ? "(?<![\\p{L}\\p{N}_])" : "";
  const after = /[\p{L}\p{N}_]$/u.test(trigger) ? "(?![\\p{L}\\p{N}_])" : "";
  return before + trigger.normalize("NFC").replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&") + after;
}

/**
 * Whether a text uses a trigger.
 * @param {string} text
 * @param {string} trigger
 */
export const mentions = (text, trigger) => spans(text, [trigger]).length > 0;

/**
 * A text with a word put in place of what is from start to end, spaced from its neighbours.
 * @param {string} text
 * @param {string} word
 * @param {number} [start]
 * @param {number} [end]
 * @returns {{text: string, caret: number}}
 */
export function insertWord(text, word, start = text.length, end = start) {
  const [before, after] = [text.slice(0, start), text.slice(end)];
  const left = before && !/[\s([{]$/.test(before) ? " " : "";
  const right = after && !/^[\s,.;:!?)\]}]/.test(after) ? " " : "";
  const head = before + left + word;
  return { text: head + right + after, caret: head.length };
}

/**
 * Where the word begins that is being typed.
 * @param {string} text
 * @param {number} caret
 */
export function wordStart(text, caret) {
  let start = caret;
  while (start > 0 && !BREAK.test(text[start - 1])) start--;
  return start;
}

/**
 * The concepts that a half-typed word may mean: its trigger or superclass begins so. Two letters are enough, or "<".
 * @template {{trigger: string, superclass: string}} T
 * @param {T[]} concepts
 * @param {string} typed
 * @returns {T[]}
 */
export function suggestions(concepts, typed) {
  const start = typed.normalize("NFC").toLowerCase();
  if (start.length < 2 && start !== "<") return [];
  return concepts.filter(({ trigger, superclass }) => {
    const [whole, bare] = [trigger.toLowerCase(), trigger.toLowerCase().replace(/^[^\p{L}\p{N}]+/u, "")];
    return (
      whole !== start &&
      [whole, bare, ...bare.split(/[-_]/), superclass.toLowerCase()].some((it) => it.startsWith(start))
    );
  });
}
