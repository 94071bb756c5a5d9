import { describe, expect, test, vi } from "vitest";
import { day, familyOfCheckpoint, search, size, summary } from "../../web/concepts.js";

const teddy = {
  file: "my-teddy.safetensors",
  name: "My teddy",
  trigger: "<ted>",
  superclass: "teddy",
  base_model: "sd1",
  modified: 1,
};
const tiger = {
  file: "toys/tiger.safetensors",
  name: "Tiger 2",
  trigger: "<tiger>",
  superclass: "cat",
  base_model: "sdxl",
  modified: 3,
  notes: "Striped",
};
const other = {
  file: "toys/tiger10.safetensors",
  name: "Tiger 10",
  trigger: "<tiger10>",
  superclass: "cat",
  base_model: "sd1",
  modified: 2,
};
const broken = { file: "broken.safetensors", name: "broken", error: "It is damaged." };
const all = [teddy, tiger, other, broken];
const names = (found) => found.map(({ name }) => name);

describe("search", () => {
  test("finds all without words, the newest first", () => {
    expect(names(search(all, " ", "newest"))).toEqual(["Tiger 2", "Tiger 10", "My teddy", "broken"]);
  });

  test.each([
    ["TOYS", ["Tiger 10", "Tiger 2"].reverse()],
    ["cat sdxl", ["Tiger 2"]],
    ["striped", ["Tiger 2"]],
    ["<ted>", ["My teddy"]],
    ["sd 1.x tiger", ["Tiger 10"]],
    ["giraffe", []],
  ])("%s finds %j", (words, found) => expect(names(search(all, words, "newest"))).toEqual(found));

  test("finds tags", () => {
    expect(names(search([{ ...teddy, tags: ["Plush", "brown"] }, tiger], "plush", "name"))).toEqual(["My teddy"]);
  });

  test("leaves only what is for some base models, when there are any", () => {
    expect(names(search(all, "", "newest", { families: ["sd1"] }))).toEqual(["Tiger 10", "My teddy"]);
    expect(names(search(all, "", "newest", { families: ["sd1", "sdxl"] }))).toHaveLength(3);
    expect(names(search(all, "", "newest", { families: [] }))).toHaveLength(4);
  });

  test("leaves out what is unfinished", () => {
    const files = ["a-unfinished", "b/a-unfinished-12", "unfinished", "my-unfinished-toy"];
    const list = files.map((file) => ({ file: `${file}.safetensors`, name: file }));
    expect(names(search(list, "", "name", { finished: true }))).toEqual(["my-unfinished-toy", "unfinished"]);
  });

  test("sorts numbers in names as numbers", () => {
    expect(names(search(all, "tiger", "name"))).toEqual(["Tiger 2", "Tiger 10"]);
  });

  test("sorts by model, then by name", () => {
    expect(names(search([tiger, other, teddy], "", "model"))).toEqual(["My teddy", "Tiger 10", "Tiger 2"]);
  });

  test("leaves the list itself as it was", () => {
    const list = [...all];
    search(list, "", "name");
    expect(list).toEqual(all);
  });
});

test.each([
  ["v1-5-pruned-emaonly-fp16.safetensors", "sd1"],
  ["sd15/dreamlike_SD1.5.safetensors", "sd1"],
  ["v2-1_768-ema-pruned.safetensors", "sd2"],
  ["sd_xl_base_1.0.safetensors", "sdxl"],
  ["juggernautXL_v9.safetensors", "sdxl"],
  ["dreamshaper_8.safetensors", undefined],
  ["DreamShaper_v2.0.safetensors", undefined], // its own second version
  ["SD1.5/realisticVision_v2.0.safetensors", "sd1"],
  ["some/v2-1_512-ema-pruned.safetensors", "sd2"],
  ["SSD-1B.safetensors", undefined],
  ["anima-base-v1.0.safetensors", "anima"],
  ["animaPencilXL_v500.safetensors", "sdxl"],
  ["animated_v1.safetensors", undefined],
  ["cosmos_predict2_2B_t2i.safetensors", "cosmos-predict2"],
])("%s looks like %s", (checkpoint, family) => expect(familyOfCheckpoint(checkpoint)).toBe(family));

test.each([
  [999, "999 bytes"],
  [40_300, "40 kB"],
  [999_600, "1.0 MB"],
])("%i is written %s", (bytes, words) => expect(size(bytes)).toBe(words));

test.each(["America/Los_Angeles", "Pacific/Auckland"])("the day is the one in the file, read in %s", (zone) => {
  vi.stubEnv("TZ", zone);
  expect(day({ date: "2026-01-02" })).toBe("Jan 2, 2026");
  vi.unstubAllEnvs();
});

test("the summary leaves out what is not known", () => {
  expect(summary({ file: "a", name: "a", superclass: "vase", base_model: "other", date: "no date" })).toBe(
    "vase · other · no date",
  );
  expect(summary(broken)).toBe("");
});
