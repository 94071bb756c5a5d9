// How long something still takes. Pure: nothing of the page.

import { amount } from "./texts.js";

/**
 * Seconds left, by the pace since the first report; undefined before there is a pace.
 * @typedef {{done: number, at: number}} Report steps done, at a time in milliseconds
 * @param {Report} first
 * @param {Report} last
 * @param {number} total
 */
export function secondsLeft(first, last, total) {
  const done = last.done - first.done;
  return done > 0 ? ((last.at - first.at) / 1000 / done) * (total - last.done) : undefined;
}

/** @param {number} seconds */
export function duration(seconds) {
  if (seconds < 90) return amount(Math.round(seconds), "second");
  const minutes = Math.round(seconds / 60);
  if (seconds < 90 * 60) return amount(minutes, "minute");
  return `${amount(Math.floor(minutes / 60), "hour")} ${amount(minutes % 60, "minute")}`;
}
