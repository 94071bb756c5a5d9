// The template browser shows a pack's workflows in the order of the file system, and ours are numbered.

import { api } from "../../scripts/api.js";
import { OURS } from "./product.js";

const { getWorkflowTemplates } = api;
api.getWorkflowTemplates = async () => {
  /** @type {Record<string, string[]>} workflows by pack */
  const found = await getWorkflowTemplates.call(api);
  found[OURS]?.sort((one, other) => one.localeCompare(other, "en", { numeric: true }));
  return found;
};
