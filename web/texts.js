// What the panels say, in the user's language. Pure: language.js brings the translations.
// A text is called by its English sentence. A text that another language does not have is said in English.

/** @type {Record<string, string>} */
let translations = {};
let locale = "en";

/**
 * Says all that comes after in another language.
 * @param {string} language as Intl knows it
 * @param {Record<string, string>} texts by their English sentences
 */
export function speak(language, texts) {
  locale = language;
  translations = texts;
}

/** The language that is spoken, for Intl. */
export const spoken = () => locale;

/**
 * A text with values in place of their names in braces. The sentence is written out in every call, for
 * tests/host/test_locales.py to find it.
 * @param {string} sentence in English
 * @param {Record<string, string | number | undefined>} [values]
 */
export function text(sentence, values = {}) {
  return (translations[sentence] || sentence).replace(/\{(\w+)\}/g, (_, name) => {
    const value = values[name];
    return typeof value === "number" ? number(value) : String(value);
  });
}

/**
 * A number as it is written in the language that is spoken.
 * @param {number} value
 * @param {Intl.NumberFormatOptions} [options]
 */
export const number = (value, options) => new Intl.NumberFormat(locale, options).format(value);

/**
 * An amount of something that Intl knows, such as "minute".
 * @param {number} value
 * @param {string} unit
 * @param {Intl.NumberFormatOptions} [options]
 */
export const amount = (value, unit, options) => number(value, { style: "unit", unit, ...options });
