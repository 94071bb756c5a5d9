import { describe, expect, test } from "vitest";
import { LEAK_LIMIT, gate, gatePath, inRows, percent, presetLike, presets, presetsOf } from "../../web/gate.js";

describe("gate", () => {
  test("is half open where the similarity is beta", () => {
    expect(gate(0.7, 0.7, 0.15)).toBe(0.5);
  });

  test("leaks as the help page says", () => {
    expect(percent(gate(0, 0.7, 0.15))).toBe("0.9%");
    expect(percent(gate(0, 0.4, 0.15))).toBe("6.5%");
  });

  test("stays between 0 and 1 at the ends of the sliders", () => {
    for (const beta of [0, 1])
      for (const temperature of [0.01, 1])
        for (const similarity of [-2, 0, 1, 2]) {
          const share = gate(similarity, beta, temperature);
          expect(share).toBeGreaterThanOrEqual(0);
          expect(share).toBeLessThanOrEqual(1);
        }
  });
});

test("the path goes through the gate's values from one end of the span to the other", () => {
  const path = gatePath(
    { beta: 0.5, temperature: 0.1, key_lock: 0 },
    (at) => at * 100,
    (share) => share * 10,
    [0, 1],
    2,
  );
  expect(path).toBe("M0.0 0.1L50.0 5.0L100.0 9.9");
});

describe("presets", () => {
  test("leak onto no unrelated words", () => {
    for (const { beta, temperature } of presets()) expect(gate(0, beta, temperature)).toBeLessThan(LEAK_LIMIT);
  });

  test("go from faithful to editable", () => {
    const own = (name) => {
      const { beta, temperature } = presets().find((preset) => preset.name === name);
      return gate(1, beta, temperature);
    };
    expect(own("Faithful")).toBeGreaterThan(own("Balanced"));
    expect(own("Balanced")).toBeGreaterThan(own("Editable"));
  });

  test("are known by their settings, as sliders round them", () => {
    const settings = { beta: 0.7000000000000001, temperature: 0.15, key_lock: 0 };
    expect(presetLike(settings, presets()).name).toBe("Balanced");
    expect(presetLike({ ...settings, key_lock: 0.5 }, presets())).toBeUndefined();
  });

  test("have the file's own only where it is another", () => {
    expect(presetsOf(null)).toEqual(presets());
    expect(presetsOf({ beta: 0.7, temperature: 0.15, key_lock: 0 })).toEqual(presets());
    expect(presetsOf({ beta: 0.66, temperature: 0.1, key_lock: 0 }).at(-1)).toMatchObject({
      name: "Its own",
      beta: 0.66,
    });
  });
});

describe("labels in rows", () => {
  test("stand where they belong, in the first row that is free", () => {
    const placed = inRows(
      [30, 90, 40].map((at) => ({ at, width: 20 })),
      [0, 100],
      4,
    );
    expect(placed.map(({ at, middle, row }) => [at, middle, row])).toEqual([
      [30, 30, 0],
      [40, 40, 1],
      [90, 90, 0],
    ]);
  });

  test("neither overlap nor stick out, wherever they belong", () => {
    for (const at of [-20, 0, 3, 50, 51, 99, 130]) {
      const placed = inRows(
        [at, 1, 50, at + 1, 98].map((at) => ({ at, width: 30 })),
        [0, 100],
        4,
      );
      for (const one of placed) {
        expect(one.middle).toBeGreaterThanOrEqual(15);
        expect(one.middle).toBeLessThanOrEqual(85);
        for (const other of placed)
          if (one !== other && one.row === other.row)
            expect(Math.abs(one.middle - other.middle)).toBeGreaterThanOrEqual(34);
      }
    }
  });
});

test.each([
  [0, "0%"],
  [0.0004, "0.0%"],
  [0.0546, "5.5%"],
  [0.0996, "10%"],
  [0.8807, "88%"],
  [1, "100%"],
])("%f is written %s", (share, words) => expect(percent(share)).toBe(words));
