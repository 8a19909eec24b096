// The page: photographs, what the model sees in them, and where it looked.

import { call, defaultMethod, methodsOf, requestOptions } from "./answers.js";
import { RequestError, getModel, listModels, methodNamed } from "./api.js";
import { ClassList, classNamed } from "./classes.js";
import { curlLine, pythonLines } from "./commands.js";
import { copy, takePhotograph } from "./dialogs.js";
import { element, find } from "./elements.js";
import { hideProblem, say, showProblem } from "./notices.js";
import { Panel } from "./panel.js";
import { Photo, pictureOf } from "./photo.js";
import { duration, methodTitle, percent, question } from "./text.js";
import { DEFAULT_LOOK, Viewer, drawScale } from "./viewer.js";

const SAVED_SIDE = 4096; // of a saved picture, in pixels
const MAX_PANELS = 6;
const EXAMPLE = "ui/cat.jpg";
const SETTINGS = ["method", "layer", "score", "resize"];

const state = {
  models: [],
  model: null, // with its classes and layers
  photos: [],
  photo: null, // the one that is shown
  panels: [],
  panel: null, // the one that the controls change
  look: { ...DEFAULT_LOOK },
};

const classes = new ClassList(find("classes"), {
  choose: (index) => {
    const { against } = state.panel.settings;
    change({ classIndex: index, against: against === index ? null : against });
  },
  versus: (index) => change({ against: state.panel.settings.against === index ? null : index }),
});

// --- The model ---

async function start() {
  hideProblem();
  try {
    state.models = await call(listModels);
    const titles = state.models.map(({ name, version }) => (version ? `${name} ${version}` : name));
    find("model").replaceChildren(...titles.map((text, value) => option(value, text)));
    await chooseModel(0);
  } catch (error) {
    showProblem(error, start);
  }
}

const option = (value, textContent) => element("option", { value, textContent });

async function chooseModel(index) {
  const chosen = state.models[index];
  if (!chosen) throw new RequestError("The server has no model.");
  const model = await call(() => getModel(chosen));
  state.model = model;
  const size = `${model.input_width_px} × ${model.input_height_px} pixels`;
  const weights = model.random_weights ? "random weights: its answers mean nothing" : model.weights;
  find("facts").textContent = `${model.class_count} classes; input ${size}; ${weights}`;
  find("method").replaceChildren(...methodsOf(model).map((name) => option(name, methodTitle(name))));
  const layers = (model.layers ?? [])
    .filter((layer) => layer.explainable && layer.name !== model.default_layer)
    .map(({ name, output_shape: [, height, width] }) => option(name, `${name} (${width} × ${height})`));
  find("layer").replaceChildren(
    option("", `${model.default_layer} (the default)`),
    ...layers.reverse(), // the last layers explain classes best
  );
  find("class-names").replaceChildren(
    ...(model.classes ?? []).map(({ name }, number) => option(`${name} #${number}`)),
  );
  for (const panel of [...state.panels]) removePanel(panel);
  for (const photo of state.photos) photo.useModel(model);
  addPanel({
    classIndex: null,
    against: null,
    method: defaultMethod(model),
    layer: "",
    score: "logit",
    resize: "stretch",
  });
  await refreshAll();
  await describeOthers();
}

// --- Photographs ---

async function addFiles(files) {
  const added = [];
  for (const file of files) {
    try {
      added.push(await Photo.open(file, { select: selectPhoto, remove: removePhoto }));
    } catch {
      showProblem(
        new RequestError(`${file.name} is no photograph that this browser can show.`, {
          remedy: "Choose a JPEG, PNG, WebP or BMP file.",
        }),
      );
    }
  }
  if (added.length === 0) return;
  if (added.length === files.length) hideProblem();
  for (const photo of added) photo.useModel(state.model);
  state.photos.push(...added);
  find("strip").append(...added.map((photo) => photo.item));
  await selectPhoto(added[0]);
  await describeOthers();
}

async function selectPhoto(photo) {
  state.photo = photo;
  await Promise.all(state.photos.map((each) => each.setShown(each === photo)));
  if (state.photo !== photo) return;
  for (const panel of state.panels) {
    Object.assign(panel.settings, { classIndex: null, against: null });
    panel.shown = null;
    panel.show(photo.picture, null, null);
  }
  render();
  await refreshAll();
}

function removePhoto(photo) {
  photo.answers?.abort();
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
async function describeOthers() {
  for (const photo of state.photos) {
    if (photo === state.photo || !state.model) continue;
    await photo.describe(state.panel.settings.resize).catch(() => {}); // the strip says so
  }
}

// --- Explanations ---

/** Returns a panel's settings with the class: the best, if none is chosen. */
function settled({ settings }, photo) {
  const best = photo.answers?.known(settings.resize)?.predictions[0].class_index ?? 0;
  return { ...settings, classIndex: settings.classIndex ?? best };
}

const refreshAll = () => Promise.all(state.panels.map(refresh));

/** Shows what the panel's settings ask for; ends the panel's older request. */
async function refresh(panel) {
  panel.control?.abort();
  panel.control = new AbortController();
  const { signal } = panel.control;
  const { photo } = state;
  if (!photo?.picture || !photo.answers) return;
  const { answers, picture } = photo;
  const isOld = () => signal.aborted || photo !== state.photo || answers !== photo.answers;
  try {
    panel.startWaiting("Asking the server:");
    const answer = await photo.describe(panel.settings.resize);
    if (isOld()) return;
    const settings = settled(panel, photo);
    let explanation = answers.explained(settings);
    if (!explanation) {
      const { title, passes } = methodNamed(settings.method);
      panel.startWaiting(passes ? `${title}: about ${passes} passes,` : `${title}:`);
      explanation = await answers.explain(settings, signal);
      if (isOld()) return;
    }
    panel.show(picture, explanation, answers.mapOf(explanation, settings.resize));
    panel.shown = settings;
    hideProblem();
    render();
    announce(panel, answer);
  } catch (error) {
    if (error.name === "AbortError" || isOld()) return;
    panel.stopWaiting();
    showProblem(error, () => refresh(panel));
  }
}

function announce({ explanation, settings }, answer) {
  const index = explanation.class_index ?? 0;
  const found = answer.predictions.find((each) => (each.class_index ?? 0) === index);
  const probability = found ? ` ${percent(found.probability ?? 0)}.` : "";
  say(`${question(explanation)}${probability} ${methodTitle(settings.method)} is shown.`);
}

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
      panel.control.abort();
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
  state.panels.push(panel);
  find("panels").append(panel.element);
  if (state.photo?.picture) panel.show(state.photo.picture, null, null);
  activate(panel);
  return panel;
}

function removePanel(panel) {
  panel.control?.abort();
  panel.element.remove();
  state.panels.splice(state.panels.indexOf(panel), 1);
  if (panel === state.panel) state.panel = state.panels[0] ?? null;
  render();
}

function activate(panel) {
  state.panel = panel;
  render();
}

// --- What is on the page ---

function render() {
  const { photo, panel, panels, model } = state;
  const isExplained = photo !== null && model !== null;
  find("drop").hidden = photo !== null;
  for (const id of ["panels", "strip-row"]) find(id).hidden = photo === null;
  for (const id of ["classes-card", "controls", "scale"]) find(id).hidden = !isExplained;
  find("panels").dataset.count = panels.length;
  for (const each of panels) each.setActive(each === panel, panels.length === 1);
  find("beside").disabled = panels.length >= MAX_PANELS;
  if (!isExplained || !panel) return;
  for (const name of SETTINGS) find(name).value = panel.settings[name];
  renderClasses(photo, panel);
}

function renderClasses(photo, panel) {
  const answer = photo.answers?.known(panel.settings.resize);
  const { classIndex, against } = answer ? settled(panel, photo) : panel.settings;
  const named = [classIndex, against].filter((index) => index !== null);
  const nameOf = (index) => ({ index, name: state.model.classes?.[index]?.name });
  classes.show(answer, named.map(nameOf));
  classes.mark(classIndex, against);
  const took = panel.explanation?.tookMs ?? answer?.tookMs;
  find("times").textContent = took ? `Answered in ${duration(took)}.` : "";
}

// --- The controls ---

function setLook(look) {
  Object.assign(state.look, look);
  for (const panel of state.panels) panel.viewer.setLook(state.look);
  find("opacity-text").textContent = `${Math.round(100 * state.look.opacity)} %`;
  find("threshold-text").textContent = `${Math.round(100 * state.look.threshold)} %`;
  drawScale(find("scale-colours"), state.look.colormap);
}

function chooseOther(event) {
  event.preventDefault();
  const text = find("other-class").value;
  const index = classNamed(text, state.model);
  const isContrast = event.submitter?.value === "against";
  let hint = "";
  if (index < 0) {
    hint = `The model has no class “${text}”: choose one of the list.`;
  } else if (!isContrast) {
    change({ classIndex: index, against: null });
  } else if (index === settled(state.panel, state.photo).classIndex) {
    hint = "Choose a class other than the explained one.";
  } else {
    change({ against: index });
  }
  find("other-hint").textContent = hint;
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
  if (!(await copy(lines({ model, file: photo.file, options, look })))) return;
  button.dataset.title ??= button.textContent;
  button.textContent = "Copied";
  say("Copied.");
  setTimeout(() => Object.assign(button, { textContent: button.dataset.title }), 2500);
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
  for (const name of SETTINGS) {
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
