// The list of classes: one is explained, and another may be what it is contrasted with.

import { element } from "./elements.js";
import { classTitle, percent } from "./text.js";

export class ClassList {
  #list;
  #events;
  #answer;
  #entries = new Map();

  /** The events are choose(index) and versus(index). */
  constructor(list, events) {
    this.#list = list;
    this.#events = events;
  }

  /** Lists the classes of an answer (or none), and others that are named. */
  show(answer, others) {
    // The entries stay while they can, and with them the focus.
    if (this.#answer !== answer) {
      this.#answer = answer;
      this.#entries.clear();
      this.#list.replaceChildren();
      for (const { class_index: index, class_name: name, probability } of answer?.predictions ?? []) {
        this.#add(index ?? 0, name, probability ?? 0);
      }
    }
    for (const { index, name } of others) if (!this.#entries.has(index)) this.#add(index, name, null);
  }

  /** Marks the explained class and the one that it is contrasted with. */
  mark(chosen, against) {
    for (const [index, entry] of this.#entries) {
      entry.choose.setAttribute("aria-pressed", String(index === chosen));
      entry.versus.setAttribute("aria-pressed", String(index === against));
      entry.versus.disabled = index === chosen;
    }
  }

  #add(index, name, probability) {
    const title = classTitle(index, name);
    const fill = element("i");
    fill.style.width = `${100 * (probability ?? 0)}%`;
    const share = probability === null ? "not among the best" : percent(probability);
    const choose = element(
      "button",
      { type: "button", className: "class" },
      element("span", { className: "name", textContent: title }),
      element("span", { className: "percent", textContent: share }),
      element("span", { className: "bar" }, fill),
    );
    const versus = element("button", { type: "button", className: "versus", textContent: "vs" });
    versus.setAttribute("aria-label", `Rather than ${title}`);
    versus.title = `Why the chosen class rather than ${title}?`;
    choose.addEventListener("click", () => this.#events.choose(index));
    versus.addEventListener("click", () => this.#events.versus(index));
    this.#entries.set(index, { choose, versus });
    this.#list.append(element("li", {}, choose, versus));
  }
}

/** Returns the index of a typed class: "tabby #281", a name, an alias or a number; -1 for none. */
export function classNamed(text, model) {
  const classes = model.classes ?? [];
  const number = /^(?:.*#)?(\d+)$/.exec(text.trim());
  if (number && Number(number[1]) < model.class_count) return Number(number[1]);
  const plain = (name) => name.trim().toLowerCase().replaceAll("_", " ");
  const wanted = plain(text);
  const isWanted = (name) => wanted !== "" && plain(name) === wanted;
  const exact = classes.findIndex((known) => isWanted(known.name));
  return exact >= 0 ? exact : classes.findIndex((known) => (known.aliases ?? []).some(isWanted));
}
