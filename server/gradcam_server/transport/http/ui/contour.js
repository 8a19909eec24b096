// The line around the values above a level.

const MAX_CELLS = 320; // along the longer side: finer than the eye follows a line

/**
 * Returns the contour as segments [x1, y1, x2, y2, ...] in pixels, by marching squares.
 * `values` is row-major, of `size` {height, width}.
 */
export function contour(values, size, level) {
  const step = Math.max(1, Math.floor(Math.max(size.height, size.width) / MAX_CELLS));
  const segments = [];
  const at = (x, y) => values[y * size.width + x];
  for (let y = 0; y + step < size.height; y += step) {
    for (let x = 0; x + step < size.width; x += step) {
      const a = at(x, y);
      const b = at(x + step, y);
      const c = at(x + step, y + step);
      const d = at(x, y + step);
      const kind = (a >= level) | ((b >= level) << 1) | ((c >= level) << 2) | ((d >= level) << 3);
      if (kind === 0 || kind === 15) continue;
      const share = (from, to) => ((level - from) / (to - from)) * step;
      const edges = [
        () => [x + share(a, b), y],
        () => [x + step, y + share(b, c)],
        () => [x + share(d, c), y + step],
        () => [x, y + share(a, d)],
      ];
      for (const [from, to] of PAIRS[kind]) segments.push(...edges[from](), ...edges[to]());
    }
  }
  return segments;
}

// For each set of corners above the level, the edges (top, right, bottom, left) that the line joins.
const PAIRS = [
  [],
  [[0, 3]],
  [[0, 1]],
  [[1, 3]],
  [[1, 2]],
  [[0, 1], [2, 3]],
  [[0, 2]],
  [[2, 3]],
  [[2, 3]],
  [[0, 2]],
  [[0, 3], [1, 2]],
  [[1, 2]],
  [[1, 3]],
  [[0, 1]],
  [[0, 3]],
  [],
];
