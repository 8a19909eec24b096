// One photograph: its file, its place in the strip, and the server's answers for it.

import { Answers } from "./answers.js";
import { element } from "./elements.js";
import { classTitle, percent } from "./text.js";
import { Picture, Viewer } from "./viewer.js";

const SHOWN_SIDE = 1280; // of a picture on the page, in pixels
const THUMBNAIL_SIDE = 160;

/** Decodes a file, scaled down until no side is longer than `maxSide`; raises for other files. */
export async function pictureOf(file, maxSide) {
  const bitmap = await createImageBitmap(file);
  const picture = new Picture(bitmap, maxSide);
  bitmap.close();
  return picture;
}

export class Photo {
  /** Reads a file; the events are select and remove. */
  static async open(file, events) {
    return new Photo(file, await pictureOf(file, THUMBNAIL_SIDE), events);
  }

  constructor(file, small, events) {
    this.file = file;
    this.picture = null; // while it is shown
    this.answers = null; // once there is a model
    const thumbnail = element("canvas");
    new Viewer(thumbnail).show(small, null);
    thumbnail.setAttribute("aria-hidden", "true");
    this.caption = element("span", { textContent: file.name });
    this.button = element("button", { type: "button", title: file.name }, thumbnail, this.caption);
    this.button.addEventListener("click", () => events.select(this));
    const close = element("button", { type: "button", className: "close", textContent: "×" });
    close.setAttribute("aria-label", `Remove ${file.name}`);
    close.addEventListener("click", () => events.remove(this));
    this.item = element("li", {}, this.button, close);
  }

  /** Takes its answers from a model from now on. */
  useModel(model) {
    this.answers?.abort();
    this.answers = model && new Answers(this.file, model);
    this.caption.textContent = this.file.name;
  }

  /** Asks once for its classes, and shows the best below it. */
  async describe(resize) {
    const { answers } = this;
    try {
      const answer = await answers.describe(resize);
      const [{ class_index: index = 0, class_name: name, probability = 0 }] = answer.predictions;
      this.caption.textContent = `${classTitle(index, name)} ${percent(probability)}`;
      return answer;
    } catch (error) {
      if (answers === this.answers) this.caption.textContent = `${this.file.name}: failed`;
      throw error;
    }
  }

  /** Has its pixels from now on, or gives their memory back. */
  async setShown(isShown) {
    if (isShown) this.picture ??= await pictureOf(this.file, SHOWN_SIDE);
    else this.picture = null;
    this.button.setAttribute("aria-current", String(isShown));
  }
}
