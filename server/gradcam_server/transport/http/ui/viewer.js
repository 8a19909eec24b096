// Draws a photograph with the heat of a map over it, from the raw map alone.

import { COLORMAPS } from "./colormaps.js";
import { contour } from "./contour.js";
import { enlarge, place } from "./geometry.js";

export const DEFAULT_LOOK = { colormap: "jet", opacity: 0.4, threshold: 0, outline: false };
const OUTLINE_LEVEL = 0.5; // of the maximum, while there is no threshold

/** The pixels of a photograph, scaled down until no side is longer than `maxSide`. */
export class Picture {
  constructor(source, maxSide) {
    const scale = Math.min(1, maxSide / Math.max(source.width, source.height));
    this.width = Math.max(1, Math.round(source.width * scale));
    this.height = Math.max(1, Math.round(source.height * scale));
    const canvas = document.createElement("canvas");
    canvas.width = this.width;
    canvas.height = this.height;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.imageSmoothingQuality = "high";
    context.drawImage(source, 0, 0, this.width, this.height);
    this.pixels = context.getImageData(0, 0, this.width, this.height).data;
  }
}

/** One picture with one map on one canvas. Nothing here asks the server for anything. */
export class Viewer {
  constructor(canvas) {
    this.canvas = canvas;
    this.picture = null;
    this.map = null;
    this.values = null; // of each pixel, 0 to 1
    this.look = DEFAULT_LOOK;
  }

  /**
   * Shows a picture with a map, or without one (null).
   *
   * `map` is {values, height, width, maximum, extent, image, input, resize}: the raw map, the part
   * of the input that it covers, the sizes of the photograph and of the input, and the way from one
   * to the other.
   */
  show(picture, map) {
    this.picture = picture;
    this.map = map;
    this.values = map && enlarge(normalised(map), place(map.image, map.input, map.resize), picture);
    this.draw();
  }

  /** Changes the colours, the opacity, the threshold or the outline. */
  setLook(look) {
    this.look = { ...this.look, ...look };
    this.draw();
  }

  /** Returns {value, raw}: the map at a pixel as a share of its maximum, and as computed. */
  valueAt(x, y) {
    if (!this.values) return null;
    const value = this.values[y * this.picture.width + x];
    return { value, raw: value * this.map.maximum };
  }

  draw() {
    if (!this.picture) return;
    const { width, height, pixels } = this.picture;
    if (this.canvas.width !== width || this.canvas.height !== height) {
      this.canvas.width = width;
      this.canvas.height = height;
    }
    const context = this.canvas.getContext("2d");
    const image = context.createImageData(width, height);
    image.data.set(pixels);
    if (this.values) blend(image.data, this.values, this.look);
    context.putImageData(image, 0, 0);
    if (this.values && this.look.outline) {
      const level = this.look.threshold > 0 ? this.look.threshold : OUTLINE_LEVEL;
      drawOutline(context, contour(this.values, this.picture, level), Math.max(width, height));
    }
  }
}

/** Draws the colours from the least to the greatest value along a canvas of 256 x 1 pixels. */
export function drawScale(canvas, colormap) {
  canvas.width = 256;
  canvas.height = 1;
  const context = canvas.getContext("2d");
  const image = context.createImageData(256, 1);
  for (let level = 0; level < 256; level += 1) {
    image.data.set(COLORMAPS[colormap].subarray(3 * level, 3 * level + 3), 4 * level);
    image.data[4 * level + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}

/** Reads base64 of little-endian float32 values. */
export function decodeFloats(base64) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Float32Array.from({ length: bytes.length / 4 }, (_, index) =>
    view.getFloat32(4 * index, true),
  );
}

function normalised(map) {
  const scale = map.maximum > 0 ? map.maximum : 1;
  return { ...map, values: map.values.map((value) => value / scale) };
}

/** Lays the colours over RGBA pixels, where the value reaches the threshold. */
function blend(pixels, values, look) {
  const colours = COLORMAPS[look.colormap];
  const weight = look.opacity;
  const rest = 1 - weight;
  for (let index = 0; index < values.length; index += 1) {
    if (values[index] < look.threshold) continue;
    const colour = 3 * Math.round(values[index] * 255);
    const pixel = 4 * index;
    pixels[pixel] = pixels[pixel] * rest + colours[colour] * weight;
    pixels[pixel + 1] = pixels[pixel + 1] * rest + colours[colour + 1] * weight;
    pixels[pixel + 2] = pixels[pixel + 2] * rest + colours[colour + 2] * weight;
  }
}

function drawOutline(context, segments, side) {
  context.beginPath();
  for (let index = 0; index < segments.length; index += 4) {
    context.moveTo(segments[index], segments[index + 1]);
    context.lineTo(segments[index + 2], segments[index + 3]);
  }
  context.lineCap = "round";
  // White on black is seen on any photograph.
  for (const [colour, share] of [["#000", 0.008], ["#fff", 0.004]]) {
    context.strokeStyle = colour;
    context.lineWidth = Math.max(1, side * share);
    context.stroke();
  }
}
