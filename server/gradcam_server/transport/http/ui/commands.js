// Lines for a shell and for Python that give the picture on the page.

import { addressOf, explainPath, token } from "./api.js";

const shellQuoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const stem = (name) => name.replace(/\.[^.]*$/, "") || name;
// JSON's strings are Python's, too.
const pythonQuoted = (text) => JSON.stringify(text);

function request({ model, file, options, look }) {
  return {
    address: addressOf(explainPath(model), {
      ...options,
      colormap: look.colormap,
      alpha: look.opacity,
    }).href,
    type: file.type || "application/octet-stream",
    output: `${stem(file.name)}-explained.png`,
  };
}

/** Returns a curl line. A token is named, never written. */
export function curlLine(shown) {
  const { address, type, output } = request(shown);
  return [
    `curl --fail-with-body --data-binary ${shellQuoted(`@${shown.file.name}`)}`,
    `-H ${shellQuoted(`Content-Type: ${type}`)} -H 'Accept: image/png'`,
    ...(token.get() ? ['-H "Authorization: Bearer $GRADCAM_TOKEN"'] : []),
    `-o ${shellQuoted(output)} ${shellQuoted(address)}`,
  ].join(" ");
}

/** Returns lines of Python that need only its standard library. */
export function pythonLines(shown) {
  const { address, type, output } = request(shown);
  const headers = [`"Content-Type": ${pythonQuoted(type)}`, '"Accept": "image/png"'];
  if (token.get()) headers.push('"Authorization": "Bearer " + os.environ["GRADCAM_TOKEN"]');
  return [
    ...(token.get() ? ["import os"] : []),
    "import urllib.request",
    "from pathlib import Path",
    "",
    `image = Path(${pythonQuoted(shown.file.name)}).read_bytes()`,
    `headers = {${headers.join(", ")}}`,
    `request = urllib.request.Request(${pythonQuoted(address)}, image, headers)`,
    `Path(${pythonQuoted(output)}).write_bytes(urllib.request.urlopen(request).read())`,
    "",
  ].join("\n");
}
