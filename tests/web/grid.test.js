import { expect, test } from "vitest";
import { cells, labels, scale } from "../../web/grid.js";

/** Three by two cells of 192 pixels, of which the last is not finished. */
const GRID = {
  columns: { kind: "beta", values: [0.5, 0.6, 0.75] },
  rows: { kind: "temperature", values: [0.05, 0.15] },
  triggers: ["<my-teddy>", "<my-cup>"],
  pictures: 5,
  size: /** @type {[number, number]} */ ([700, 430]),
  cell: 192,
  gap: 6,
};

test("cells are named by both axes, row by row, as far as there are pictures", () => {
  expect(cells(GRID).map(({ label }) => label)).toEqual([
    "beta 0.5, temperature 0.05",
    "beta 0.6, temperature 0.05",
    "beta 0.75, temperature 0.05",
    "beta 0.5, temperature 0.15",
    "beta 0.6, temperature 0.15",
  ]);
});

test("a cell sets both numbers for all concepts", () => {
  const { settings, triggers } = cells(GRID)[4];
  expect(settings).toEqual({ beta: 0.6, temperature: 0.15 });
  expect(triggers).toEqual(["<my-teddy>", "<my-cup>"]);
});

test("with concepts on one side a cell sets the other side's number for its concept", () => {
  const rows = { kind: "concept", values: ["<my-teddy>", "<my-cup>"] };
  const { label, settings, triggers } = cells({ ...GRID, rows })[4];
  expect([label, settings, triggers]).toEqual(["beta 0.6, <my-cup>", { beta: 0.6 }, ["<my-cup>"]]);
});

test("concepts by prompts set nothing", () => {
  const [columns, rows] = [
    { kind: "prompt", values: ["a <my-teddy>", "on snow", "in 3"] },
    { kind: "concept", values: ["<my-teddy>", "<my-cup>"] },
  ];
  expect(labels(columns)).toEqual(columns.values);
  expect(cells({ ...GRID, columns, rows }).map(({ settings }) => settings)).toEqual([{}, {}, {}, {}, {}]);
});

test("a cell shows its own pixels of the whole picture", () => {
  const [width, height] = scale(GRID)
    .split(" ")
    .map((share) => (Number.parseFloat(share) / 100) * GRID.cell);
  expect([width, height].map(Math.round)).toEqual(GRID.size);
  const places = cells(GRID).map(({ part }) =>
    part.split(" ").map((share, side) => Math.round((Number.parseFloat(share) / 100) * (GRID.size[side] - GRID.cell))),
  );
  expect(places).toEqual([
    [106, 34],
    [304, 34],
    [502, 34],
    [106, 232],
    [304, 232],
  ]);
});
