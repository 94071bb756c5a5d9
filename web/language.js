// The language of the panels: that of the frontend, by the translations in locales/, which the host gives out.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { speak } from "./texts.js";

/** Speaks the frontend's language where there are translations, otherwise English. */
async function followSetting() {
  const language = app.extensionManager?.setting?.get("Comfy.Locale") ?? "en";
  const texts = language === "en" ? undefined : await translationsTo(language);
  const spoken = texts ? language : "en";
  const region = navigator.languages.find((known) => known.split("-")[0] === spoken); // dates are not the same in all
  speak(region ?? spoken, texts ?? {});
}

/**
 * @param {string} language
 * @returns {Promise<Record<string, string> | undefined>}
 */
async function translationsTo(language) {
  try {
    return (await (await api.fetchApi("/i18n")).json())[language]?.perfusion;
  } catch {
    return undefined; // a host without that route
  }
}

app.registerExtension({
  name: "perfusion.language",
  init: followSetting,
  refreshComboInNodes: followSetting, // as the host does when the language changes, before it makes all nodes anew
});
