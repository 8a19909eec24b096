// The position of a photograph on the model's input, and maps laid over the photograph: the same
// arithmetic as images/geometry.py of the server.

/** Rounds as Python does: a half goes to the even neighbour. */
function roundHalfEven(value) {
  const floor = Math.floor(value);
  if (value - floor !== 0.5) return Math.round(value);
  return floor % 2 === 0 ? floor : floor + 1;
}

function rounded(length, atMost) {
  return Math.min(Math.max(roundHalfEven(length), 1), atMost);
}

function centred(imageSize, imageLength, inputSize, inputLength) {
  return {
    imageSize,
    imageStart: Math.floor((imageSize - imageLength) / 2),
    imageLength,
    inputSize,
    inputStart: Math.floor((inputSize - inputLength) / 2),
    inputLength,
  };
}

/**
 * Returns {vertical, horizontal}: the span of the photograph on the input along each axis.
 * Sizes are {height, width} in pixels; the mode is "stretch", "center-crop" or "letterbox".
 */
export function place(image, input, mode) {
  let cropHeight = image.height;
  let cropWidth = image.width;
  let fitHeight = input.height;
  let fitWidth = input.width;
  if (mode === "center-crop") {
    const scale = Math.min(image.height / input.height, image.width / input.width);
    cropHeight = rounded(input.height * scale, image.height);
    cropWidth = rounded(input.width * scale, image.width);
  } else if (mode === "letterbox") {
    const scale = Math.min(input.height / image.height, input.width / image.width);
    fitHeight = rounded(image.height * scale, input.height);
    fitWidth = rounded(image.width * scale, input.width);
  }
  return {
    vertical: centred(image.height, cropHeight, input.height, fitHeight),
    horizontal: centred(image.width, cropWidth, input.width, fitWidth),
  };
}

/**
 * Finds the two map positions between which each pixel lies: bilinear, half-pixel centres,
 * replicated borders. The map covers `length` pixels of the input from `start`.
 */
function neighbours(span, mapSize, start, length, pixels) {
  const lower = new Uint32Array(pixels);
  const fraction = new Float32Array(pixels);
  const isCovered = new Uint8Array(pixels);
  for (let index = 0; index < pixels; index += 1) {
    const onPart = ((index + 0.5) * span.imageSize) / pixels - span.imageStart;
    if (onPart < 0 || onPart > span.imageLength) continue;
    const fromStart = span.inputStart + (onPart * span.inputLength) / span.imageLength - start;
    if (fromStart < 0 || fromStart > length) continue;
    const onMap = Math.min(Math.max((fromStart * mapSize) / length - 0.5, 0), mapSize - 1);
    lower[index] = Math.floor(onMap);
    fraction[index] = onMap - lower[index];
    isCovered[index] = 1;
  }
  return { lower, fraction, isCovered };
}

/**
 * Enlarges a map to `size` pixels that show the whole photograph; zero outside the map.
 *
 * `map` is {values, height, width, extent}: row-major values, and the part of the input that they
 * cover as {top, left, height, width}, or null for the whole input. Returns a Float32Array.
 */
export function enlarge(map, placement, size) {
  const { vertical, horizontal } = placement;
  const extent = map.extent ?? {
    top: 0,
    left: 0,
    height: vertical.inputSize,
    width: horizontal.inputSize,
  };
  const rows = neighbours(vertical, map.height, extent.top, extent.height, size.height);
  const columns = neighbours(horizontal, map.width, extent.left, extent.width, size.width);
  const enlarged = new Float32Array(size.height * size.width);
  const line = new Float32Array(map.width + 1); // the last value twice: a right-hand neighbour
  for (let y = 0; y < size.height; y += 1) {
    if (!rows.isCovered[y]) continue;
    const above = rows.lower[y] * map.width;
    const below = Math.min(rows.lower[y] + 1, map.height - 1) * map.width;
    const share = rows.fraction[y];
    for (let x = 0; x < map.width; x += 1) {
      line[x] = map.values[above + x] * (1 - share) + map.values[below + x] * share;
    }
    line[map.width] = line[map.width - 1];
    const start = y * size.width;
    for (let x = 0; x < size.width; x += 1) {
      if (!columns.isCovered[x]) continue;
      const left = columns.lower[x];
      const part = columns.fraction[x];
      enlarged[start + x] = line[left] * (1 - part) + line[left + 1] * part;
    }
  }
  return enlarged;
}
