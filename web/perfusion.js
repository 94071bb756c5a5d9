import { app } from "../../scripts/app.js";

// The classic canvas hides a widget by its own flag, which the frontend does not set from the schema.
// Its node menu then offers "Show Advanced"; the other renderer folds such widgets by itself.
app.registerExtension({
  name: "perfusion.advanced",
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("Perfusion")) return;
    const rare = (node.widgets ?? []).filter((widget) => widget.options?.advanced);
    for (const widget of rare) widget.advanced = true;
    if (rare.length) node.setSize(node.computeSize());
  },
});
