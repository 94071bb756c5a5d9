import { expect, test } from "vitest";
import { duration } from "../../web/time.js";

test.each([
  [0.4, "0 sec"],
  [89, "89 sec"],
  [100, "2 min"],
  [89.6 * 60, "90 min"],
  [3 * 3600 + 65, "3 hr 1 min"],
  [338.5 * 3600, "14 days 2 hr"],
])("%f seconds are %s", (seconds, words) => expect(duration(seconds)).toBe(words));
