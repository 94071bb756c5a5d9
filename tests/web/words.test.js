import { describe, expect, test } from "vitest";
import { insertWord, mentions, spans, suggestions, wordStart } from "../../web/words.js";

describe("mentions", () => {
  test.each([
    ["a photo of <my-teddy>, red", "<my-teddy>", true],
    ["(<My-Teddy>:1.2)", "<my-teddy>", true],
    ["<my-teddy>s", "<my-teddy>", true],
    ["he asks sks", "sks", true],
    ["he asks", "sks", false],
    ["skså", "sks", false],
    ["<my-teddy2>", "<my-teddy>", false],
    ["", "<my-teddy>", false],
  ])("%s, %s: %s", (text, trigger, is) => expect(mentions(text, trigger)).toBe(is));
});

describe("spans", () => {
  test.each([
    ["sks and SKS", ["sks"], ["sks", "SKS"]],
    ["<my-teddy><my-teddy>2", ["<my-teddy>"], ["<my-teddy>", "<my-teddy>"]],
    ["a my-teddy-2", ["my-teddy", "my-teddy-2"], ["my-teddy-2"]],
    ["İİ a.b axb", ["a.b"], ["a.b"]],
    ["_sks sks_ /^$.*+?|", ["sks", "/^$.*+?|"], ["/^$.*+?|"]],
    ["my_toy_ _toy_ _toy_s", ["_toy_"], ["_toy_"]],
    ["anything", [], []],
    ["a <teddy-ba\u0308r> or <teddy-b\u00e4r>, red", ["<teddy-b\u00e4r>"], ["<teddy-ba\u0308r>", "<teddy-b\u00e4r>"]],
    ["\u1100\u1169\u11b7 and \u1100\u1169\u11b7x", ["\uacf0"], ["\u1100\u1169\u11b7"]],
    ["e\u0302\u0301 \u{1f469}\u200d\u{1f33e} sks", ["sks"], ["sks"]],
    ["cafe\u0301 cafe", ["cafe"], ["cafe"]],
  ])("of %j: %j are %j", (text, triggers, found) => {
    expect(spans(text, triggers).map(([from, to]) => text.slice(from, to))).toEqual(found);
  });
});

describe("insertWord", () => {
  test.each([
    ["", 0, 0, "<x>", 3],
    ["a photo of", 10, 10, "a photo of <x>", 14],
    ["a photo of on snow", 11, 11, "a photo of <x> on snow", 14],
    ["(red", 1, 1, "(<x> red", 4],
    ["a te, red", 2, 4, "a <x>, red", 5],
  ])("%j at %i to %i: %j", (text, start, end, then, caret) => {
    expect(insertWord(text, "<x>", start, end)).toEqual({ text: then, caret });
  });
});

test.each([
  ["a photo of <my", 14, 11],
  ["(ted:1.2)", 4, 1],
  ["two words", 3, 0],
  ["end ", 4, 4],
])("in %j at %i the word starts at %i", (text, caret, start) => expect(wordStart(text, caret)).toBe(start));

describe("suggestions", () => {
  const teddy = { trigger: "<my-teddy>", superclass: "bear" };
  const sks = { trigger: "sks", superclass: "Cat" };
  test.each([
    ["<", [teddy]],
    ["<my", [teddy]],
    ["my", [teddy]],
    ["TED", [teddy]],
    ["be", [teddy]],
    ["ca", [sks]],
    ["sk", [sks]],
    ["s", []],
    ["", []],
    ["<my-teddy>", []],
    ["dd", []],
  ])("%j suggests %j", (typed, found) => expect(suggestions([teddy, sks], typed)).toEqual(found));
});
