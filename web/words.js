// Triggers in prompts. Pure: nothing of the page.

/** What cannot be part of a trigger, and so ends the word before the caret. */
const BREAK = /[\s()[\]{}:,\\"]/;

/**
 * Whether a text uses a trigger, which the text encoder reads without regard to case.
 * @param {string} text
 * @param {string} trigger
 */
export function mentions(text, trigger) {
  const [lowText, lowTrigger] = [text.toLowerCase(), trigger.toLowerCase()];
  const isLetter = (/** @type {string | undefined} */ character) => /[\p{L}\p{N}_]/u.test(character ?? "");
  for (let at = lowText.indexOf(lowTrigger); at >= 0; at = lowText.indexOf(lowTrigger, at + 1)) {
    const end = at + lowTrigger.length;
    const goesOn = isLetter(lowTrigger[0]) && isLetter(lowText[at - 1]);
    if (!goesOn && !(isLetter(lowTrigger.at(-1)) && isLetter(lowText[end]))) return true;
  }
  return false;
}

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
  const start = typed.toLowerCase();
  if (start.length < 2 && start !== "<") return [];
  return concepts.filter(({ trigger, superclass }) => {
    const [whole, bare] = [trigger.toLowerCase(), trigger.toLowerCase().replace(/^[^\p{L}\p{N}]+/u, "")];
    return (
      whole !== start &&
      [whole, bare, ...bare.split(/[-_]/), superclass.toLowerCase()].some((it) => it.startsWith(start))
    );
  });
}
