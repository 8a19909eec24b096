// What the page says: to all readers, or to those who hear it.

import { find } from "./elements.js";

const RETRY_S = 2; // where a busy server names no time

let timer = null;

/** Tells readers who hear the page what has changed. */
export function say(text) {
  find("announce").textContent = text;
}

/** Shows an error with its remedy; `again` is what the button "Try again" calls. */
export function showProblem(error, again = null) {
  find("problem-text").textContent = error.message;
  find("problem-remedy").textContent = error.remedy ?? "";
  find("problem").hidden = false;
  find("retry").hidden = !again;
  find("retry").onclick = again;
  clearTimeout(timer);
  // A server that warms up, or is busy, says when to come back.
  if (again && (error.status === 503 || error.status === 429)) {
    timer = setTimeout(again, 1000 * Math.max(error.retryAfterS ?? RETRY_S, 1));
  }
}

export function hideProblem() {
  clearTimeout(timer);
  find("problem").hidden = true;
}
