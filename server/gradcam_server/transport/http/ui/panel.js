// One picture on the page with its heat, its heading and the value under the pointer.

import { element } from "./elements.js";
import { duration, methodTitle, percent, question, warning } from "./text.js";
import { Viewer } from "./viewer.js";

const WAIT_SHOWN_MS = 250; // an answer that comes sooner needs no words about waiting
const TICK_MS = 200;
const STEP = 0.02; // of the picture, for the arrow keys
const LARGE_STEP = 0.1;
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class Panel {
  /**
   * `settings` is {classIndex, against, method, layer, score, resize}; a class of null is the best.
   * The events are pick, remove, cancel, and point(x, y, isKey) with shares of the picture.
   */
  constructor(settings, events) {
    this.settings = { ...settings };
    this.shown = null; // the settings of what is shown
    this.control = null; // of the request in work
    this.explanation = null;
    this.place = null; // of the pointer
    this.canvas = element("canvas", { tabIndex: 0 });
    this.canvas.setAttribute("role", "application");
    this.canvas.setAttribute("aria-roledescription", "heat map");
    this.viewer = new Viewer(this.canvas);
    this.cross = element("span", { className: "cross", hidden: true });
    this.heading = element("button", { type: "button", className: "heading" });
    this.close = element("button", { type: "button", className: "close", textContent: "×" });
    this.readout = element("p", { className: "readout" });
    this.waitText = element("span");
    this.cancel = element("button", { type: "button", textContent: "Cancel" });
    this.bar = element("progress");
    this.bar.setAttribute("aria-label", "Waiting for the server");
    this.wait = element(
      "div",
      { className: "wait", hidden: true },
      this.waitText,
      this.bar,
      this.cancel,
    );
    this.element = element(
      "figure",
      { className: "panel" },
      element("figcaption", {}, this.heading, this.close),
      element("div", { className: "frame" }, this.canvas, this.cross, this.wait),
      this.readout,
    );
    this.heading.addEventListener("click", events.pick);
    this.close.addEventListener("click", events.remove);
    this.cancel.addEventListener("click", events.cancel);
    this.#listen(events);
  }

  /** Shows the picture with the map of an explanation, or alone (null). */
  show(picture, explanation, map) {
    this.stopWaiting();
    this.explanation = explanation;
    this.viewer.show(picture, map);
    this.canvas.parentElement.style.setProperty("--ratio", picture.width / picture.height);
    this.cross.hidden = true;
    this.place = null;
    this.readout.textContent = explanation ? warning(explanation) : "";
    if (!explanation) {
      this.heading.replaceChildren(element("strong", { textContent: "Asking the server" }));
      return;
    }
    const how = `${methodTitle(this.settings.method)}, ${explanation.layer}`;
    this.heading.replaceChildren(
      element("strong", { textContent: question(explanation) }),
      element("span", { textContent: how }),
    );
    this.close.setAttribute("aria-label", `Remove ${question(explanation)} ${how}`);
    this.canvas.setAttribute(
      "aria-label",
      `${question(explanation)} ${how}. The arrow keys move the pointer.`,
    );
  }

  /** Says what is waited for, if it takes long; counts the seconds until `stopWaiting`. */
  startWaiting(text) {
    this.stopWaiting();
    this.element.setAttribute("aria-busy", "true");
    const start = performance.now();
    this.timer = setInterval(() => {
      const passed = performance.now() - start;
      if (passed < WAIT_SHOWN_MS) return;
      this.wait.hidden = false;
      this.waitText.textContent = `${text} ${duration(passed)}`;
    }, TICK_MS);
  }

  stopWaiting() {
    this.element.setAttribute("aria-busy", "false");
    clearInterval(this.timer);
    this.wait.hidden = true;
  }

  setActive(isActive, isOnly) {
    this.element.classList.toggle("active", isActive && !isOnly);
    this.heading.setAttribute("aria-pressed", String(isActive));
    this.heading.disabled = isOnly; // nothing to choose between
    this.close.hidden = isOnly;
  }

  /** Moves the cross to a place in shares of the picture; returns the words for it. */
  point(x, y) {
    const { picture } = this.viewer;
    if (!picture || !this.explanation) return "";
    this.place = { x, y };
    this.cross.hidden = false;
    this.cross.style.left = `${100 * x}%`;
    this.cross.style.top = `${100 * y}%`;
    const column = Math.min(picture.width - 1, Math.floor(x * picture.width));
    const row = Math.min(picture.height - 1, Math.floor(y * picture.height));
    const { value, raw } = this.viewer.valueAt(column, row);
    const text = `${percent(value)} of the maximum; value ${raw.toPrecision(3)}`;
    this.readout.textContent = text;
    return text;
  }

  unpoint() {
    this.cross.hidden = true;
    this.readout.textContent = this.explanation ? warning(this.explanation) : "";
  }

  #listen(events) {
    const onPointer = (event) => {
      const box = this.canvas.getBoundingClientRect();
      const share = (value, size) => Math.min(Math.max(value / size, 0), 1);
      events.point(
        share(event.clientX - box.left, box.width),
        share(event.clientY - box.top, box.height),
        false,
      );
    };
    this.canvas.addEventListener("pointermove", onPointer);
    this.canvas.addEventListener("pointerdown", onPointer);
    this.canvas.addEventListener("pointerleave", (event) => {
      if (event.pointerType === "mouse") events.unpoint();
    });
    this.canvas.addEventListener("blur", events.unpoint);
    this.canvas.addEventListener("keydown", (event) => {
      if (event.key === "Escape") events.unpoint();
      const arrow = ARROWS[event.key];
      if (!arrow) return;
      event.preventDefault();
      const step = event.shiftKey ? LARGE_STEP : STEP;
      const from = this.place ?? { x: 0.5, y: 0.5 };
      const moved = (start, direction) => Math.min(Math.max(start + direction * step, 0), 1);
      events.point(moved(from.x, arrow[0]), moved(from.y, arrow[1]), true);
    });
  }
}
