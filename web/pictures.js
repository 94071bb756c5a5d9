// The last picture that a workflow made, to be a concept's thumbnail.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { html } from "./element.js";
import { nodeOfRun, source } from "./graph.js";

const SIDE = 256; // pixels, as the server keeps thumbnails
const QUALITY = 0.92; // of a JPEG, which the server makes smaller

/** @type {{node: any, images: Record<string, string>[]} | undefined} */
let last;

/** Whether there is one since the page was loaded. */
export const hasLastPicture = () => last !== undefined;

/** Its address: of a batch the one that is looked at, else the first. */
function address() {
  const { node, images } = /** @type {NonNullable<typeof last>} */ (last);
  return api.apiURL(`/view?${new URLSearchParams(images[node?.imageIndex ?? 0] ?? images[0])}`);
}

/** A small square JPEG of its middle, as a data URL. */
export async function lastPicture() {
  const picture = html("img", { src: address() });
  await picture.decode();
  const side = Math.min(picture.naturalWidth, picture.naturalHeight);
  const [x, y] = [(picture.naturalWidth - side) / 2, (picture.naturalHeight - side) / 2];
  const canvas = html("canvas", { width: SIDE, height: SIDE });
  canvas.getContext("2d")?.drawImage(picture, x, y, side, side, 0, 0, SIDE, SIDE);
  return canvas.toDataURL("image/jpeg", QUALITY);
}

app.registerExtension({
  name: "perfusion.pictures",
  setup() {
    api.addEventListener("executed", ({ detail }) => {
      const images = detail.output?.images;
      const node = nodeOfRun(detail.display_node ?? detail.node);
      const ours = [node, node && source(node, "IMAGE")].some((it) => it?.type.startsWith("Perfusion"));
      if (images?.length && !ours) last = { node, images }; // ours are sheets and curves
    });
  },
});
