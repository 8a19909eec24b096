// The page: photographs, what the model sees in them, and where it looked.

import { METHODS, RequestError, explain, getModel, listModels, methodNamed } from "./api.js";
import { curlLine, pythonLines } from "./commands.js";
import { askToken, copy, takePhotograph } from "./dialogs.js";
import { Panel, element } from "./panel.js";
import { classTitle, duration, methodTitle, percent, question } from "./text.js";
import { DEFAULT_LOOK, Picture, Viewer, decodeFloats, drawScale } from "./viewer.js";

const SHOWN_CLASSES = 10;
const READY_CLASSES = 5; // explained at once: at the default layer they are nearly free
const SHOWN_SIDE = 1280; // of a picture on the page, in pixels
const SAVED_SIDE = 4096;
const THUMBNAIL_SIDE = 160;
const MAX_PANELS = 6;
const EXAMPLE = "ui/cat.jpg";

const find = (id) => document.getElementById(id);

const state = {
  models: [],
  model: null, // with its classes and layers
  photos: [],
  photo: null, // the one that is shown
  panels: [],
  panel: null, // the one that the controls change
  look: { ...DEFAULT_LOOK },
};
let retry = null;

// --- The model ---

async function start() {
  hideProblem();
  try {
    state.models = await call(listModels);
    find("model").replaceChildren(
      ...state.models.map(({ name, version }, index) =>
        element("option", { value: index, textContent: version ? `${name} ${version}` : name }),
      ),
    );
    await chooseModel(0);
  } catch (error) {
    showProblem(error, start);
  }
}

async function chooseModel(index) {
  const chosen = state.models[index];
  if (!chosen) throw new RequestError("The server has no model.");
  const model = await call(() => getModel(chosen));
  state.model = model;
  const size = `${model.input_width_px} × ${model.input_height_px} pixels`;
  const weights = model.random_weights ? "random weights: its answers mean nothing" : model.weights;
  find("facts").textContent = `${model.class_count} classes; input ${size}; ${weights}`;
  const methods = (model.methods ?? []).filter((method) => METHODS[method]);
  find("method").replaceChildren(
    ...methods.map((method) =>
      element("option", { value: METHODS[method].name, textContent: METHODS[method].title }),
    ),
  );
  const layers = (model.layers ?? []).filter((layer) => layer.explainable).reverse();
  const sizes = (layer) => `${layer.output_shape[2]} × ${layer.output_shape[1]}`;
  find("layer").replaceChildren(
    element("option", { value: "", textContent: `${model.default_layer} (the default)` }),
    ...layers
      .filter((layer) => layer.name !== model.default_layer)
      .map((layer) =>
        element("option", { value: layer.name, textContent: `${layer.name} (${sizes(layer)})` }),
      ),
  );
  find("class-names").replaceChildren(
    ...(model.classes ?? []).map((known, number) =>
      element("option", { value: `${known.name} #${number}` }),
    ),
  );
  for (const panel of [...state.panels]) removePanel(panel);
  addPanel({
    classIndex: null,
    against: null,
    method: methods.includes("METHOD_GRAD_CAM") ? "gradcam" : find("method").value,
    layer: "",
    score: "logit",
    resize: "stretch",
  });
  for (const photo of state.photos) forget(photo);
  await refreshAll();
  await describeAll();
}

/** Calls the server, and asks for a token if it needs one. */
async function call(request) {
  for (;;) {
    try {
      return await request();
    } catch (error) {
      if (error.status !== 401 || !(await askToken(error.message))) throw error;
    }
  }
}

// --- Photographs ---

async function addFiles(files) {
  const added = [];
  for (const file of files) {
    try {
      const bitmap = await createImageBitmap(file);
      added.push(newPhoto(file, bitmap));
      bitmap.close();
    } catch {
      showProblem(
        new RequestError(`${file.name} is no photograph that this browser can show.`, {
          remedy: "Choose a JPEG, PNG, WebP or BMP file.",
        }),
      );
    }
  }
  if (added.length === 0) return;
  hideProblem();
  state.photos.push(...added);
  find("strip").append(...added.map((photo) => photo.item));
  await selectPhoto(added[0]);
  await describeAll();
}

function newPhoto(file, bitmap) {
  const photo = { file, picture: null };
  const thumbnail = element("canvas");
  new Viewer(thumbnail).show(new Picture(bitmap, THUMBNAIL_SIDE), null);
  thumbnail.setAttribute("aria-hidden", "true");
  photo.caption = element("span");
  photo.button = element("button", { type: "button" }, thumbnail, photo.caption);
  photo.button.addEventListener("click", () => selectPhoto(photo));
  const close = element("button", { type: "button", className: "close", textContent: "×" });
  close.setAttribute("aria-label", `Remove ${file.name}`);
  close.addEventListener("click", () => removePhoto(photo));
  photo.item = element("li", {}, photo.button, close);
  forget(photo);
  return photo;
}

/** Drops the answers for a photograph, such as those of another model. */
function forget(photo) {
  photo.control?.abort();
  photo.control = new AbortController();
  photo.described = new Map(); // promises of answers by the way to the input
  photo.answers = new Map();
  photo.maps = new Map(); // explanations by their settings
  photo.caption.textContent = photo.file.name;
}

async function selectPhoto(photo) {
  // Pixels take much memory: only the photograph that is shown has them.
  for (const each of state.photos) if (each !== photo) each.picture = null;
  state.photo = photo;
  photo.picture ??= await pictureOf(photo.file, SHOWN_SIDE);
  if (state.photo !== photo) return;
  for (const panel of state.panels) {
    Object.assign(panel.settings, { classIndex: null, against: null });
    panel.shown = panel.settings;
    panel.show(photo.picture, null, null);
  }
  for (const each of state.photos) each.button.setAttribute("aria-current", String(each === photo));
  render();
  await refreshAll();
}

async function pictureOf(file, maxSide) {
  const bitmap = await createImageBitmap(file);
  const picture = new Picture(bitmap, maxSide);
  bitmap.close();
  return picture;
}

function removePhoto(photo) {
  photo.control.abort();
  const index = state.photos.indexOf(photo);
  state.photos.splice(index, 1);
  photo.item.remove();
  const next = state.photos[Math.min(index, state.photos.length - 1)];
  if (next) {
    if (photo === state.photo) selectPhoto(next);
    next.button.focus();
  } else {
    state.photo = null;
    render();
    find("choose").focus();
  }
}

/** Asks for the classes of the photographs that are not shown, one after the other. */
async function describeAll() {
  if (!state.model) return;
  for (const photo of state.photos) {
    if (photo === state.photo) continue;
    await describe(photo, state.panel.settings.resize).catch((error) => {
      if (error.name !== "AbortError") photo.caption.textContent = `${photo.file.name}: failed`;
    });
  }
}

/** Asks once for the classes of a photograph, with the maps of the best; returns the answer. */
function describe(photo, resize) {
  const { described } = photo;
  if (!described.has(resize)) {
    const asked = askForClasses(photo, resize).catch((error) => {
      described.delete(resize); // the next attempt asks again
      throw error;
    });
    described.set(resize, asked);
  }
  return described.get(resize);
}

async function askForClasses(photo, resize) {
  const { model } = state;
  const settings = { method: defaultMethod(), layer: "", score: "logit", resize, against: null };
  const ready = Math.min(READY_CLASSES, model.max_target_count ?? 1, model.class_count);
  const options = { ...requestOptions(settings), top_k: ready, predictions: SHOWN_CLASSES };
  const { maps, answers, control } = photo;
  const answer = await call(() => timed(explain(model, photo.file, options, control.signal)));
  answers.set(resize, answer);
  for (const explanation of answer.explanations ?? []) {
    maps.set(keyOf({ ...settings, classIndex: explanation.class_index ?? 0 }), explanation);
  }
  const [best] = answer.predictions;
  const name = classTitle(best.class_index ?? 0, best.class_name);
  photo.caption.textContent = `${name} ${percent(best.probability ?? 0)}`;
  photo.button.title = photo.file.name;
  return answer;
}

async function timed(request) {
  const start = performance.now();
  const answer = await request;
  return { ...answer, tookMs: performance.now() - start };
}

// --- Explanations ---

const defaultMethod = () => {
  const names = [...find("method").options].map((option) => option.value);
  return names.includes("gradcam") ? "gradcam" : names[0];
};

const keyOf = ({ classIndex, against, method, layer, score, resize }) =>
  JSON.stringify([classIndex, against, method, layer, score, resize]);

/** Returns the query parameters of a panel's settings, without those that are the default. */
function requestOptions({ classIndex, against, method, layer, score, resize }) {
  return {
    class: classIndex,
    against,
    method,
    layer,
    score: score === "logit" ? null : score,
    resize: resize === "stretch" ? null : resize,
  };
}

function settled(panel, photo) {
  const best = answerFor(panel, photo)?.predictions[0].class_index ?? 0;
  return { ...panel.settings, classIndex: panel.settings.classIndex ?? best };
}

const refreshAll = () => Promise.all(state.panels.map(refresh));

const answerFor = (panel, photo) => photo.answers.get(panel.settings.resize);

/** Shows what the panel's settings ask for; ends the panel's older request. */
async function refresh(panel) {
  panel.control?.abort();
  const control = new AbortController();
  panel.control = control;
  const { photo, model } = state;
  if (!photo?.picture || !model) return;
  const method = methodNamed(panel.settings.method);
  try {
    panel.startWaiting("Asking the server:");
    const answer = await describe(photo, panel.settings.resize);
    if (control.signal.aborted || photo !== state.photo) return;
    const settings = settled(panel, photo);
    const key = keyOf(settings);
    let explanation = photo.maps.get(key);
    if (!explanation) {
      const passes = method?.passes ? ` about ${method.passes} passes,` : "";
      panel.startWaiting(`${methodTitle(settings.method)}:${passes}`);
      const options = { ...requestOptions(settings), predictions: 0 };
      const explained = await call(() =>
        timed(explain(model, photo.file, options, control.signal)),
      );
      [explanation] = explained.explanations;
      explanation.tookMs = explained.tookMs;
      photo.maps.set(key, explanation);
    }
    if (control.signal.aborted || photo !== state.photo) return;
    panel.show(photo.picture, explanation, mapOf(explanation, answer, settings));
    panel.shown = settings;
    hideProblem();
    render();
    announce(panel, answer);
  } catch (error) {
    if (error.name === "AbortError" || control.signal.aborted || photo !== state.photo) return;
    panel.stopWaiting();
    showProblem(error, () => refresh(panel));
  }
}

/** Returns the raw map with what places it on the photograph. */
function mapOf(explanation, answer, settings) {
  const [heatmap] = explanation.heatmaps;
  const { model } = state;
  const { extent } = explanation;
  return {
    values: decodeFloats(heatmap.data ?? ""),
    height: heatmap.height_px,
    width: heatmap.width_px,
    maximum: explanation.degenerate ? 0 : explanation.raw_max,
    extent: extent && {
      top: extent.top_px ?? 0,
      left: extent.left_px ?? 0,
      height: extent.height_px ?? 0,
      width: extent.width_px ?? 0,
    },
    image: { height: answer.image_height_px, width: answer.image_width_px },
    input: { height: model.input_height_px, width: model.input_width_px },
    resize: settings.resize,
  };
}

function announce(panel, answer) {
  const prediction = answer.predictions.find(
    (each) => (each.class_index ?? 0) === (panel.explanation.class_index ?? 0),
  );
  const probability = prediction ? ` ${percent(prediction.probability ?? 0)}.` : "";
  say(`${question(panel.explanation)}${probability} ${methodTitle(panel.settings.method)} is shown.`);
}

const say = (text) => {
  find("announce").textContent = text;
};

/** Changes the settings of the active panel. */
function change(settings) {
  Object.assign(state.panel.settings, settings);
  render();
  refresh(state.panel);
}

// --- Panels ---

function addPanel(settings) {
  const panel = new Panel(settings, {
    pick: () => activate(panel),
    remove: () => {
      removePanel(panel);
      state.panel.canvas.focus();
    },
    cancel: () => {
      panel.control?.abort();
      panel.stopWaiting();
      Object.assign(panel.settings, panel.shown);
      render();
      say("Cancelled.");
      panel.canvas.focus();
    },
    point: (x, y, isKey) => {
      const texts = state.panels.map((each) => each.point(x, y));
      if (isKey) say(texts[state.panels.indexOf(panel)]);
    },
    unpoint: () => state.panels.forEach((each) => each.unpoint()),
  });
  panel.viewer.setLook(state.look);
  if (state.photo?.picture) panel.show(state.photo.picture, null, null);
  state.panels.push(panel);
  find("panels").append(panel.element);
  activate(panel);
  return panel;
}

function removePanel(panel) {
  panel.control?.abort();
  panel.element.remove();
  state.panels.splice(state.panels.indexOf(panel), 1);
  if (state.panels.length > 0) activate(state.panels[0]);
}

function activate(panel) {
  state.panel = panel;
  render();
}

// --- What is on the page ---

function render() {
  const { photo, panel, panels, model } = state;
  const isShown = photo !== null && model !== null;
  find("drop").hidden = photo !== null;
  for (const id of ["panels", "strip-row"]) find(id).hidden = photo === null;
  for (const id of ["classes-card", "controls", "scale"]) find(id).hidden = !isShown;
  find("panels").dataset.count = panels.length;
  for (const each of panels) each.setActive(each === panel, panels.length === 1);
  find("beside").disabled = panels.length >= MAX_PANELS;
  if (!isShown || !panel) return;
  for (const name of ["method", "layer", "score", "resize"]) find(name).value = panel.settings[name];
  renderClasses(photo, panel);
}

function renderClasses(photo, panel) {
  const list = find("classes");
  const answer = answerFor(panel, photo);
  const shown = answer ? settled(panel, photo) : panel.settings;
  if (list.photo !== photo || list.answer !== answer) {
    list.replaceChildren();
    Object.assign(list, { photo, answer, entries: new Map() });
    for (const { class_index: index, class_name: name, probability } of answer?.predictions ?? []) {
      addClass(list, index ?? 0, name, probability ?? 0);
    }
  }
  for (const index of [shown.classIndex, shown.against]) {
    if (index === null || list.entries.has(index)) continue;
    addClass(list, index, state.model.classes?.[index]?.name, null);
  }
  for (const [index, { chosen, versus }] of list.entries) {
    chosen.setAttribute("aria-pressed", String(index === shown.classIndex));
    versus.setAttribute("aria-pressed", String(index === shown.against));
    versus.disabled = index === shown.classIndex;
  }
  const took = panel.explanation?.tookMs ?? answer?.tookMs;
  find("times").textContent = took ? `Answered in ${duration(took)}.` : "";
}

function addClass(list, index, name, probability) {
  const title = classTitle(index, name);
  const fill = element("i");
  fill.style.width = `${100 * (probability ?? 0)}%`;
  const chosen = element(
    "button",
    { type: "button", className: "class" },
    element("span", { className: "name", textContent: title }),
    element("span", {
      className: "percent",
      textContent: probability === null ? "not among the best" : percent(probability),
    }),
    element("span", { className: "bar" }, fill),
  );
  const versus = element("button", { type: "button", className: "versus", textContent: "vs" });
  versus.setAttribute("aria-label", `Rather than ${title}`);
  versus.title = `Why the chosen class rather than ${title}?`;
  chosen.addEventListener("click", () => {
    const { against } = state.panel.settings;
    change({ classIndex: index, against: against === index ? null : against });
  });
  versus.addEventListener("click", () => {
    change({ against: state.panel.settings.against === index ? null : index });
  });
  list.entries.set(index, { chosen, versus });
  list.append(element("li", {}, chosen, versus));
}

function showProblem(error, again = null) {
  find("problem-text").textContent = error.message;
  find("problem-remedy").textContent = error.remedy ?? "";
  find("problem").hidden = false;
  find("retry").hidden = !again;
  clearTimeout(retry);
  find("retry").onclick = again;
  // A server that warms up, or is busy, says when to come back.
  if (again && (error.status === 503 || error.status === 429)) {
    retry = setTimeout(again, 1000 * Math.max(error.retryAfterS ?? 2, 1));
  }
}

function hideProblem() {
  clearTimeout(retry);
  find("problem").hidden = true;
}

// --- The controls ---

function setLook(look) {
  Object.assign(state.look, look);
  for (const panel of state.panels) panel.viewer.setLook(state.look);
  find("opacity-text").textContent = `${Math.round(100 * state.look.opacity)} %`;
  find("threshold-text").textContent = `${Math.round(100 * state.look.threshold)} %`;
  drawScale(find("scale-colours"), state.look.colormap);
}

/** Returns the index of a class that was typed: "tabby #281", a name, an alias or a number. */
function classNamed(text) {
  const classes = state.model.classes ?? [];
  const number = /^(?:.*#)?(\d+)$/.exec(text.trim());
  if (number && Number(number[1]) < state.model.class_count) return Number(number[1]);
  const wanted = text.trim().toLowerCase().replaceAll("_", " ");
  const isSame = (name) => name.toLowerCase().replaceAll("_", " ") === wanted;
  const exact = classes.findIndex((known) => isSame(known.name));
  return exact >= 0 ? exact : classes.findIndex((known) => (known.aliases ?? []).some(isSame));
}

function chooseOther(event) {
  event.preventDefault();
  const text = find("other-class").value;
  const index = classNamed(text);
  if (index < 0 || text.trim() === "") {
    find("other-hint").textContent = `The model has no class “${text}”: choose one of the list.`;
    return;
  }
  find("other-hint").textContent = "";
  if (event.submitter?.value !== "against") change({ classIndex: index, against: null });
  else if (index !== settled(state.panel, state.photo).classIndex) change({ against: index });
  else find("other-hint").textContent = "Choose a class other than the explained one.";
}

async function save() {
  const { photo, panel, look } = state;
  if (!panel.viewer.map) return;
  const viewer = new Viewer(element("canvas"));
  viewer.look = look;
  viewer.show(await pictureOf(photo.file, SAVED_SIDE), panel.viewer.map);
  const blob = await new Promise((resolve) => viewer.canvas.toBlob(resolve, "image/png"));
  const link = element("a", {
    href: URL.createObjectURL(blob),
    download: `${photo.file.name.replace(/\.[^.]*$/, "")}-explained.png`,
  });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

async function copyLines(button, lines) {
  const { photo, panel, model, look } = state;
  const options = requestOptions(settled(panel, photo));
  const isCopied = await copy(lines({ model, file: photo.file, options, look }));
  if (!isCopied) return;
  const title = button.textContent;
  button.textContent = "Copied";
  say("Copied.");
  setTimeout(() => {
    button.textContent = title;
  }, 1500);
}

async function useCamera() {
  // Browsers open cameras to pages over TLS and of this machine; a phone's own camera always works.
  if (!navigator.mediaDevices?.getUserMedia) {
    find("capture").click();
    return;
  }
  try {
    const file = await takePhotograph();
    if (file) await addFiles([file]);
  } catch {
    showProblem(
      new RequestError("The camera cannot be used.", {
        remedy: "Allow it in the browser's settings for this page, or choose a photograph.",
      }),
    );
  }
}

async function tryExample() {
  const answer = await fetch(new URL(EXAMPLE, document.baseURI));
  await addFiles([new File([await answer.blob()], "cat.jpg", { type: "image/jpeg" })]);
}

function listen() {
  const on = (id, event, listener) => find(id).addEventListener(event, listener);
  on("model", "change", (event) =>
    chooseModel(Number(event.target.value)).catch((error) => showProblem(error, start)),
  );
  for (const id of ["choose", "more"]) on(id, "click", () => find("files").click());
  for (const id of ["camera", "more-camera"]) on(id, "click", useCamera);
  on("example", "click", tryExample);
  for (const id of ["files", "capture"]) {
    on(id, "change", (event) => {
      addFiles([...event.target.files]);
      event.target.value = ""; // so that the same file can be chosen again
    });
  }
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length > 0) addFiles(files);
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dragging");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dragging");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    addFiles([...event.dataTransfer.files]);
  });
  for (const name of ["method", "layer", "score", "resize"]) {
    on(name, "change", (event) => change({ [name]: event.target.value }));
  }
  on("colormap", "change", (event) => setLook({ colormap: event.target.value }));
  on("opacity", "input", (event) => setLook({ opacity: Number(event.target.value) }));
  on("threshold", "input", (event) => setLook({ threshold: Number(event.target.value) }));
  on("outline", "change", (event) => setLook({ outline: event.target.checked }));
  on("beside", "click", () => {
    const panel = addPanel(state.panel.settings);
    refresh(panel);
    panel.heading.focus();
  });
  on("other", "submit", chooseOther);
  on("save", "click", save);
  on("copy-curl", "click", (event) => copyLines(event.currentTarget, curlLine));
  on("copy-python", "click", (event) => copyLines(event.currentTarget, pythonLines));
  on("dismiss", "click", hideProblem);
}

listen();
setLook({});
start();
