import { expect, test } from "vitest";
import { duration, secondsLeft } from "../../web/time.js";

test("what is left goes by the pace since the first report, not by steps done earlier", () => {
  expect(secondsLeft({ done: 100, at: 5_000 }, { done: 110, at: 25_000 }, 200)).toBe(180);
  expect(secondsLeft({ done: 100, at: 5_000 }, { done: 100, at: 5_000 }, 200)).toBeUndefined();
});

test.each([
  [0.4, "0 sec"],
  [89, "89 sec"],
  [100, "2 min"],
  [89.6 * 60, "90 min"],
  [3 * 3600 + 65, "3 hr 1 min"],
])("%f seconds are %s", (seconds, words) => expect(duration(seconds)).toBe(words));
