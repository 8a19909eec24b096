// The requests of this page to its server: docs/http.md describes them.

/** The methods' names in requests, their titles, and about how many passes they take. */
export const METHODS = {
  METHOD_GRAD_CAM: { name: "gradcam", title: "Grad-CAM" },
  METHOD_GRAD_CAM_PLUS_PLUS: { name: "gradcam++", title: "Grad-CAM++" },
  METHOD_HIRES_CAM: { name: "hirescam", title: "HiResCAM" },
  METHOD_X_GRAD_CAM: { name: "xgradcam", title: "XGrad-CAM" },
  METHOD_LAYER_CAM: { name: "layercam", title: "LayerCAM" },
  METHOD_ELEMENTWISE_GRAD_CAM: { name: "elementwise-gradcam", title: "Element-wise Grad-CAM" },
  METHOD_EIGEN_GRAD_CAM: { name: "eigengradcam", title: "EigenGrad-CAM" },
  METHOD_FINER_CAM: { name: "finercam", title: "Finer-CAM" },
  METHOD_EIGEN_CAM: { name: "eigencam", title: "Eigen-CAM" },
  METHOD_SCORE_CAM: { name: "scorecam", title: "Score-CAM", passes: 66 },
  METHOD_INTEGRATED_GRADIENTS: {
    name: "integrated-gradients",
    title: "Integrated Gradients",
    passes: 33,
  },
};

export const methodNamed = (name) => Object.values(METHODS).find((method) => method.name === name);

/** A failure in plain words: what was wrong, and what would be right. */
export class RequestError extends Error {
  constructor(message, { status = 0, remedy = "", retryAfterS = null } = {}) {
    super(message);
    this.status = status;
    this.remedy = remedy;
    this.retryAfterS = retryAfterS;
  }
}

const TOKEN_KEY = "gradcam-token"; // of this tab alone, and gone with it

export const token = {
  get: () => sessionStorage.getItem(TOKEN_KEY) ?? "",
  set: (text) => sessionStorage.setItem(TOKEN_KEY, text),
};

/** Returns the address of a path below the page's own address. */
export function addressOf(path, options = {}) {
  const address = new URL(path, document.baseURI);
  for (const [name, value] of Object.entries(options)) {
    for (const each of [value].flat()) {
      if (each !== "" && each !== null && each !== undefined) address.searchParams.append(name, each);
    }
  }
  return address;
}

export const explainPath = (model) =>
  `v1/models/${encodeURIComponent(model.name)}` +
  `${model.version ? `/versions/${encodeURIComponent(model.version)}` : ""}:explain`;

export async function listModels() {
  return (await send(addressOf("v1/models"))).models ?? [];
}

/** Returns a model with its classes and layers. */
export async function getModel(model) {
  const version = model.version ? `/versions/${encodeURIComponent(model.version)}` : "";
  return send(addressOf(`v1/models/${encodeURIComponent(model.name)}${version}`));
}

/** Explains an image file, sent as it is; `options` are the query parameters. */
export async function explain(model, file, options, signal) {
  const address = addressOf(explainPath(model), { ...options, heatmap: "raw" });
  const headers = { "Content-Type": file.type || "application/octet-stream" };
  return send(address, { method: "POST", body: file, headers, signal });
}

async function send(address, { headers = {}, ...request } = {}) {
  const all = { ...headers, Accept: "application/json" };
  if (token.get()) all.Authorization = `Bearer ${token.get()}`;
  let answer;
  try {
    answer = await fetch(address, { ...request, headers: all, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new RequestError("The server cannot be reached.", {
      remedy: "Check that it runs and that the network is up, then try again.",
    });
  }
  if (answer.ok) return answer.json();
  throw await problemOf(answer);
}

/** Reads problem details (RFC 9457); a proxy's answer may have none. */
async function problemOf(answer) {
  const problem = await answer.json().catch(() => ({}));
  const wait = problem.retry_after_s ?? answer.headers.get("Retry-After");
  const message = problem.detail || problem.title || `The server answered ${answer.status}.`;
  return new RequestError(message, {
    status: answer.status,
    remedy: problem.remedy && !message.includes(problem.remedy) ? problem.remedy : "",
    retryAfterS: wait === null || wait === undefined ? null : Number(wait),
  });
}
