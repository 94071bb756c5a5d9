import { app } from "../../scripts/app.js";

const WIDTH = 270; // of a new node, so that the classic canvas does not cut its title

// The classic canvas folds a widget by its own flags, which the frontend does not set from the schema: "advanced" for
// the node menu's "Show Advanced", "hidden" for the room it takes. The other renderer folds such widgets by itself.
app.registerExtension({
  name: "perfusion.advanced",
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("Perfusion")) return;
    const rare = (node.widgets ?? []).filter((widget) => widget.options?.advanced);
    for (const widget of rare) {
      widget.advanced = true;
      const hidden = () => !node.showAdvanced && !window.LiteGraph.vueNodesMode;
      Object.defineProperty(widget, "hidden", { configurable: true, get: hidden, set() {} });
    }
    const height = rare.length ? node.computeSize()[1] : node.size[1];
    node.setSize([Math.max(node.size[0], WIDTH), height]);
  },
});
