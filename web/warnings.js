// What the trainer warns of. Pure: nothing of the page.

import { text } from "./texts.js";

/**
 * Sentences for what the server found.
 * @param {Record<string, number>} found
 * @param {{superclass: string, locked: string, known: boolean}} [word] how it reads the superclass
 */
export function warningsIn({ few_photos, without_mask, unchanged }, word) {
  return [
    word && !word.known && unknown(word),
    few_photos !== undefined &&
      text("Photos: {few_photos}. With 3 to 10 the concept gets better.", {
        few_photos,
      }),
    without_mask && text("Photos without a mask: {without_mask}. Their background is learned, too.", { without_mask }),
    unchanged && text("Hardly anything changed. Train for more steps, or with higher learning rates."),
  ].filter(Boolean);
}

/** @param {{superclass: string, locked: string}} word */
function unknown({ superclass, locked }) {
  const word = superclass.split(" ").at(-1);
  if (!locked) return text("The model does not know “{word}” as one word. Write a common one, such as dog.", { word });
  const words = { word, locked };
  return text("The model does not know “{word}” as one word, only “{locked}”. Write a common one, such as dog.", words);
}
