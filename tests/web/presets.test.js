import { expect, test } from "vitest";
import { ESTIMATED, estimateIn, isSet, trainingPresets, valuesIn } from "../../web/presets.js";
import { warningsIn } from "../../web/warnings.js";

const GIB = 2 ** 30;

test.each([false, true])("each preset is known again by all of its values, and only that one", (demo) => {
  for (const preset of trainingPresets(demo)) {
    const valueOf = (name) => preset.values[name];
    expect(
      trainingPresets(demo)
        .filter((other) => isSet(other, valueOf))
        .map(({ name }) => name),
    ).toEqual([preset.name]);
    expect(isSet(preset, (name) => (name === "steps" ? 1 : preset.values[name]))).toBe(false);
  }
});

test("all presets set the same inputs, so that one takes back the other", () => {
  const inputs = trainingPresets().map(({ values }) => Object.keys(values).sort().join());
  expect(new Set(inputs).size).toBe(1);
  expect(ESTIMATED).toContain("steps");
});

test("on the demo model a step is four pictures and keys are free, whatever the preset", () => {
  expect(trainingPresets(true).map(({ values }) => values.accumulation)).toEqual([1, 1, 1, 1]);
  expect(trainingPresets(true).map(({ values }) => values.key_freedom)).toEqual([1, 1, 1, 1]);
  expect(trainingPresets(true).map(({ name }) => name)).toEqual(trainingPresets().map(({ name }) => name));
});

test("a preset says what it sets", () => {
  expect(valuesIn(trainingPresets()[1])).toContain(
    "steps 400, batch_size 4, accumulation 4, learning_rate_values 0.03",
  );
});

test("an estimate names time and memory, and what to do where the memory is not there", () => {
  const estimate = { seconds: 720, bytes: 6.2 * GIB, device_bytes: 8 * GIB };
  expect(estimateIn(estimate)).toBe("About 12 min and 6.2 GB of memory.");
  expect(estimateIn({ ...estimate, device_bytes: 4 * GIB })).toBe(
    "About 12 min and 6.2 GB of memory, but there are 4 GB. Choose Low memory.",
  );
});

test("what is wrong with photos and words is said, and nothing where all is well", () => {
  expect(warningsIn({})).toEqual([]);
  expect(warningsIn({}, { superclass: "red dog", locked: "dog", known: true })).toEqual([]);
  expect(warningsIn({ few_photos: 2, without_mask: 1, unchanged: 1 })).toHaveLength(3);
  const word = { superclass: "old schnauzerl", locked: "erl", known: false };
  expect(warningsIn({}, word)[0]).toContain("“schnauzerl” as one word, only “erl”");
  expect(warningsIn({}, { ...word, locked: "" })[0]).toContain("“schnauzerl” as one word.");
});
