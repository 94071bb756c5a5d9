import { afterEach, describe, expect, test } from "vitest";
import { summary } from "../../web/concepts.js";
import { percent } from "../../web/gate.js";
import { amount, number, speak, text } from "../../web/texts.js";
import { duration } from "../../web/time.js";

afterEach(() => speak("en", {}));

describe("text", () => {
  test("is the English sentence where there is no translation", () => {
    speak("fr", { Undo: "Annuler", Save: "" });
    expect([text("Undo"), text("Save"), text("Cancel")]).toEqual(["Annuler", "Save", "Cancel"]);
  });

  test("puts values where the language has them, and numbers as it writes them", () => {
    speak("de", { "Step {done} of {total}": "Von {total}: {done}" });
    expect(text("Step {done} of {total}", { done: 1234, total: 5000 })).toBe("Von 5.000: 1.234");
  });

  test("leaves braces in a value alone", () => {
    expect(text("{name} of {all}", { name: "{all}", all: 2 })).toBe("{all} of 2");
  });
});

test.each([
  ["en", ["6.5%", "0.5", "3 hr 1 min", "1 byte", "vase · demo model · 40 kB · Jan 2, 2026"]],
  ["de", ["6,5 %", "0,5", "3 Std. 1 Min.", "1 Byte", "vase · demo model · 40 kB · 02.01.2026"]],
  ["fr", ["6,5 %", "0,5", "3 h 1 min", "1 octet", "vase · demo model · 40 ko · 2 janv. 2026"]],
  ["ja", ["6.5%", "0.5", "3 時間 1 分", "1 バイト", "vase · demo model · 40 KB · 2026/01/02"]],
])("%s writes numbers, times and days its own way", (language, written) => {
  speak(language, {});
  const about = { superclass: "vase", base_model: "demo", bytes: 40_300, date: "2026-01-02T12:00" };
  const line = summary({ file: "a", name: "a", ...about });
  const all = [percent(0.0653), number(0.5), duration(3 * 3600 + 65), amount(1, "byte", { unitDisplay: "long" })];
  expect([...all, line].map((words) => words.replace(/\s/g, " "))).toEqual(written);
});
