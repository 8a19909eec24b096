// Draws the heat of the gallery's images from their raw maps, in the colours that the reader chooses.
// Without this script the pictures that the page embeds stay.

import { DEFAULT_LOOK, Picture, Viewer, decodeFloats, drawScale } from "./viewer.js";

const MAX_SIDE = 1000;
const controls = document.querySelector("form");
const viewers = new Map(); // of the figures that have been seen
const visible = new Set();
const look = { ...DEFAULT_LOOK };

async function viewerOf(figure) {
  const [image, overlay] = figure.querySelectorAll("img");
  const canvas = document.createElement("canvas");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", overlay.alt);
  const viewer = new Viewer(canvas);
  await image.decode();
  const bitmap = await createImageBitmap(image);
  const { map, rows, columns, height, width, input, resize } = figure.dataset;
  const values = decodeFloats(map);
  viewer.look = look;
  viewer.show(new Picture(bitmap, MAX_SIDE), {
    values,
    height: Number(rows),
    width: Number(columns),
    maximum: values.reduce((most, value) => Math.max(most, value), 0),
    extent: null,
    image: { height: Number(height), width: Number(width) },
    input: { height: Number(input), width: Number(input) },
    resize,
  });
  bitmap.close();
  overlay.replaceWith(canvas);
  return viewer;
}

async function draw(figure) {
  if (!viewers.has(figure)) viewers.set(figure, viewerOf(figure));
  (await viewers.get(figure)).setLook(look);
}

function change() {
  const { colormap, opacity, threshold, outline } = controls.elements;
  look.colormap = colormap.value;
  look.opacity = Number(opacity.value);
  look.threshold = Number(threshold.value);
  look.outline = outline.checked;
  drawScale(controls.querySelector("canvas"), look.colormap);
  visible.forEach(draw);
}

const observer = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting) {
      visible.add(target);
      draw(target);
    } else {
      visible.delete(target);
    }
  }
});

controls.hidden = false;
document.querySelector(".scale").hidden = true;
controls.addEventListener("input", change);
controls.addEventListener("submit", (event) => event.preventDefault());
change();
document.querySelectorAll("figure[data-map]").forEach((figure) => observer.observe(figure));
