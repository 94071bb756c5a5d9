// How long something still takes. Pure: nothing of the page.

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
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 90 * 60) return `${Math.round(seconds / 60)} min`;
  const minutes = Math.round(seconds / 60);
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}
