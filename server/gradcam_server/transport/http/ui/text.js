// Words and numbers as the page shows them.

import { methodNamed } from "./api.js";

export function percent(share) {
  if (share > 0 && share < 0.001) return "< 0.1 %";
  return `${(100 * share).toFixed(1)} %`;
}

export const classTitle = (index, name) => name || `class ${index}`;

/** Returns the question that an explanation answers. */
export function question(explanation) {
  const { class_index: index = 0, class_name: name, against_class_index: against } = explanation;
  const why = `Why ${classTitle(index, name)}`;
  if (against === undefined) return `${why}?`;
  return `${why} rather than ${classTitle(against, explanation.against_class_name)}?`;
}

export const methodTitle = (name) => methodNamed(name)?.title ?? name;

/** Returns what a reader must know of a map that shows nothing, or "". */
export function warning(explanation) {
  if (explanation.saturated) {
    return "The probability is so near to 1 or 0 that its gradient is lost: choose the logit.";
  }
  if (explanation.degenerate) return "Nothing in this layer speaks for the class: the map is zero.";
  return "";
}

export function duration(milliseconds) {
  if (milliseconds < 1000) return `${Math.round(milliseconds)} ms`;
  return `${(milliseconds / 1000).toFixed(1)} s`;
}
