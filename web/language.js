// The language of the panels: that of the frontend, by the translations in locales/, which the host gives out.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { speak, spoken } from "./texts.js";

/** "change" is dispatched when what stands on the page is in another language than what is said from now on. */
export const language = new EventTarget();

/** Speaks the frontend's language where there are translations, otherwise English. */
async function followSetting() {
  const before = spoken();
  const wanted = app.extensionManager?.setting?.get("Comfy.Locale") ?? "en";
  const texts = wanted === "en" ? undefined : await translationsTo(wanted);
  const known = texts ? wanted : "en";
  const region = navigator.languages.find((name) => name.split("-")[0] === known); // dates are not the same in all
  speak(region ?? known, texts ?? {});
  if (spoken() !== before) language.dispatchEvent(new Event("change"));
}

/**
 * @param {string} name
 * @returns {Promise<Record<string, string> | undefined>}
 */
async function translationsTo(name) {
  try {
    return (await (await api.fetchApi("/i18n")).json())[name]?.perfusion;
  } catch {
    return undefined; // a host without that route
  }
}

app.registerExtension({
  name: "perfusion.language",
  init: followSetting,
  refreshComboInNodes: followSetting, // as the host does when the language changes, before it makes all nodes anew
});
