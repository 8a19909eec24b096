// The server's answers for one photograph by one model: each is asked for once.

import { METHODS, RequestError, explain, token } from "./api.js";
import { askToken } from "./dialogs.js";
import { decodeFloats } from "./viewer.js";

const SHOWN_CLASSES = 10;
const READY_CLASSES = 5; // explained at once: at the default layer they are nearly free

/** Calls the server, and asks for a token if it needs one. */
export async function call(request) {
  for (;;) {
    try {
      return await request();
    } catch (error) {
      if (error.status !== 401) throw error;
      // What is wrong with a token is the server's to say; that there is none is no fault yet.
      if (await askToken(token.get() ? error.message : "")) continue;
      throw new RequestError("This server asks for a token.", {
        status: error.status,
        remedy: "Whoever runs the server can give you one.",
      });
    }
  }
}

/** Returns the names of the methods that a model has and this page knows. */
export const methodsOf = (model) =>
  (model.methods ?? []).filter((method) => METHODS[method]).map((method) => METHODS[method].name);

export function defaultMethod(model) {
  const names = methodsOf(model);
  return names.includes("gradcam") ? "gradcam" : names[0];
}

/** Returns the query parameters of settings, without those that are the default. */
export function requestOptions({ classIndex, against, method, layer, score, resize }) {
  return {
    class: classIndex,
    against,
    method,
    layer,
    score: score === "logit" ? null : score,
    resize: resize === "stretch" ? null : resize,
  };
}

const keyOf = ({ classIndex, against, method, layer, score, resize }) =>
  JSON.stringify([classIndex, against, method, layer, score, resize]);

export class Answers {
  #file;
  #model;
  #control = new AbortController();
  #asked = new Map(); // promises of answers with classes, by the way to the input
  #answers = new Map();
  #explanations = new Map(); // by their settings

  constructor(file, model) {
    this.#file = file;
    this.#model = model;
  }

  /** Ends the requests in work. */
  abort() {
    this.#control.abort();
  }

  /** Returns the answer with the classes, if it is there. */
  known(resize) {
    return this.#answers.get(resize);
  }

  /** Asks for the classes, with the maps of the best. */
  describe(resize) {
    if (!this.#asked.has(resize)) {
      const asked = this.#askForClasses(resize).catch((error) => {
        this.#asked.delete(resize); // the next attempt asks again
        throw error;
      });
      this.#asked.set(resize, asked);
    }
    return this.#asked.get(resize);
  }

  /** Returns an explanation that is there already, or undefined. */
  explained(settings) {
    return this.#explanations.get(keyOf(settings));
  }

  /** Asks for an explanation. */
  async explain(settings, signal) {
    const options = { ...requestOptions(settings), predictions: 0 };
    const answer = await this.#ask(options, signal);
    const [explanation] = answer.explanations;
    explanation.tookMs = answer.tookMs;
    this.#explanations.set(keyOf(settings), explanation);
    return explanation;
  }

  /** Returns the raw map of an explanation with what places it on the photograph. */
  mapOf(explanation, resize) {
    const [heatmap] = explanation.heatmaps;
    const { extent } = explanation;
    const answer = this.known(resize);
    return {
      values: decodeFloats(heatmap.data ?? ""),
      height: heatmap.height_px,
      width: heatmap.width_px,
      maximum: explanation.degenerate ? 0 : explanation.raw_max,
      // Fields of value 0 are left out of JSON.
      extent: extent && {
        top: extent.top_px ?? 0,
        left: extent.left_px ?? 0,
        height: extent.height_px ?? 0,
        width: extent.width_px ?? 0,
      },
      image: { height: answer.image_height_px, width: answer.image_width_px },
      input: { height: this.#model.input_height_px, width: this.#model.input_width_px },
      resize,
    };
  }

  async #askForClasses(resize) {
    const model = this.#model;
    const method = defaultMethod(model);
    const settings = { method, layer: "", score: "logit", resize, against: null };
    const ready = Math.min(READY_CLASSES, model.max_target_count ?? 1, model.class_count);
    const options = { ...requestOptions(settings), top_k: ready, predictions: SHOWN_CLASSES };
    const answer = await this.#ask(options, this.#control.signal);
    this.#answers.set(resize, answer);
    for (const explanation of answer.explanations ?? []) {
      const classIndex = explanation.class_index ?? 0;
      this.#explanations.set(keyOf({ ...settings, classIndex }), explanation);
    }
    return answer;
  }

  async #ask(options, signal) {
    const start = performance.now();
    const answer = await call(() => explain(this.#model, this.#file, options, signal));
    return { ...answer, tookMs: performance.now() - start };
  }
}
