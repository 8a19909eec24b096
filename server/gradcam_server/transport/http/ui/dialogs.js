// The dialogs: the token, the camera, and lines to copy where the clipboard is closed to pages.

import { token } from "./api.js";
import { find } from "./elements.js";

let asked = null; // one dialog, however many requests need the token

/** Asks for the token of the server, with its words; false if the reader closes the dialog. */
export function askToken(words) {
  asked ??= new Promise((resolve) => {
    const dialog = find("token-dialog");
    const field = find("token");
    field.value = "";
    find("token-words").textContent = words;
    dialog.returnValue = "";
    dialog.addEventListener(
      "close",
      () => {
        asked = null;
        const isGiven = dialog.returnValue === "given" && field.value.trim() !== "";
        if (isGiven) token.set(field.value.trim());
        field.value = "";
        resolve(isGiven);
      },
      { once: true },
    );
    dialog.showModal();
  });
  return asked;
}

/** Takes a photograph with the camera; null if the reader closes the dialog. */
export async function takePhotograph() {
  const stream = await navigator.mediaDevices.getUserMedia({
    video: { facingMode: "environment", width: { ideal: 1920 } },
  });
  const dialog = find("camera-dialog");
  const video = find("video");
  video.srcObject = stream;
  dialog.showModal();
  try {
    return await new Promise((resolve) => {
      find("shoot").onclick = () => resolve(frameOf(video));
      find("camera-close").onclick = () => resolve(null);
      dialog.oncancel = () => resolve(null);
    });
  } finally {
    dialog.close();
    video.srcObject = null;
    for (const track of stream.getTracks()) track.stop();
  }
}

async function frameOf(video) {
  if (!video.videoWidth) {
    await new Promise((resolve) => video.addEventListener("loadeddata", resolve, { once: true }));
  }
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
  return new File([blob], "camera.jpg", { type: "image/jpeg" });
}

/** Copies text, or shows it selected; returns whether it is on the clipboard. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = find("copy-text");
    field.value = text;
    find("copy-dialog").showModal();
    field.select();
    return false;
  }
}
