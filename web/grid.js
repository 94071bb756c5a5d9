// The cells of a sweep's grid, from what the server tells of it. Pure: nothing of the page.

/** @typedef {{kind: string, values: (string | number)[]}} Axis */
/**
 * @typedef {object} Grid
 * @property {Axis} columns
 * @property {Axis} rows
 * @property {string[]} triggers of all concepts
 * @property {number} pictures that are finished, row by row
 * @property {[number, number]} size of the whole picture in pixels, in which labels stand left and above
 * @property {number} cell the side of a picture in it
 * @property {number} gap right of each and below it
 */
/**
 * @typedef {object} Cell
 * @property {string} label
 * @property {Record<string, number>} settings that the cell was made with, of those the grid is over
 * @property {string[]} triggers of the concepts that it was made with
 * @property {string} part of the whole picture, for CSS's background-position
 */

const TEXTS = ["concept", "prompt"];

/**
 * What stands beside the values of an axis.
 * @param {Axis} axis
 */
export const labels = ({ kind, values }) =>
  values.map((value) => (TEXTS.includes(kind) ? String(value) : `${kind} ${value}`));

/**
 * The finished cells, row by row.
 * @param {Grid} grid
 * @returns {Cell[]}
 */
export function cells({ columns, rows, triggers, pictures, size, cell, gap }) {
  const [across, down] = [columns, rows].map(labels);
  const [left, top] = [columns, rows].map(({ values }, side) => size[side] - values.length * (cell + gap));
  return Array.from({ length: pictures }, (_, number) => {
    const [column, row] = [number % across.length, Math.floor(number / across.length)];
    const made = { [columns.kind]: columns.values[column], [rows.kind]: rows.values[row] };
    const settings = Object.entries(made).filter(([kind]) => !TEXTS.includes(kind));
    const place = [left + column * (cell + gap), top + row * (cell + gap)];
    return {
      label: `${across[column]}, ${down[row]}`,
      settings: Object.fromEntries(settings.map(([kind, value]) => [kind, Number(value)])),
      triggers: "concept" in made ? [String(made.concept)] : triggers,
      part: place.map((at, side) => `${(100 * at) / (size[side] - cell)}%`).join(" "),
    };
  });
}

/**
 * How large the whole picture is beside a cell, for CSS's background-size.
 * @param {Grid} grid
 */
export const scale = ({ size, cell }) => size.map((length) => `${(100 * length) / cell}%`).join(" ");
