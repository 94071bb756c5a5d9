import js from "@eslint/js";

const page = "document window navigator location localStorage Event EventTarget ResizeObserver MutationObserver URL";
const more = "URLSearchParams HTMLTextAreaElement Response console setTimeout clearTimeout requestAnimationFrame";
const rest = "Element getComputedStyle";
const globals = Object.fromEntries(`${page} ${more} ${rest}`.split(" ").map((name) => [name, "readonly"]));

export default [
  { ignores: ["**/node_modules/"] },
  js.configs.recommended,
  {
    languageOptions: { ecmaVersion: 2023, sourceType: "module", globals },
    rules: { eqeqeq: ["error", "smart"], "max-len": ["error", 120], "no-var": "error", "prefer-const": "error" },
    linterOptions: { reportUnusedDisableDirectives: "error" },
  },
];
