// How long something still takes, in words. Pure: nothing of the page.

import { amount } from "./texts.js";

/** @param {number} seconds */
export function duration(seconds) {
  if (seconds < 90) return amount(Math.round(seconds), "second");
  const minutes = Math.round(seconds / 60);
  if (seconds < 90 * 60) return amount(minutes, "minute");
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${amount(hours, "hour")} ${amount(minutes % 60, "minute")}`;
  return `${amount(Math.floor(hours / 24), "day")} ${amount(hours % 24, "hour")}`;
}
