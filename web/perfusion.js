import { app } from "../../scripts/app.js";

const WIDTH = 270; // of a new node, so that the classic canvas does not cut its title
const NO_ROOM = () => [0, -4]; // 4 are what the classic canvas leaves between widgets

// The classic canvas folds a widget by its own flag, for the node menu's "Show Advanced", which the frontend does not
// set from the schema; and it leaves room for what it has folded. The other renderer folds such widgets by itself.
app.registerExtension({
  name: "perfusion.advanced",
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("Perfusion")) return;
    const rare = (node.widgets ?? []).filter((widget) => widget.options?.advanced);
    for (const widget of rare) {
      widget.advanced = true;
      const drawn = () => node.isWidgetRowVisible?.(widget) ?? node.isWidgetVisible(widget); // newer frontends, older
      Object.defineProperty(widget, "computeSize", { configurable: true, get: () => (drawn() ? undefined : NO_ROOM) });
    }
    const height = rare.length ? node.computeSize()[1] : node.size[1];
    node.setSize([Math.max(node.size[0], WIDTH), height]);
  },
});
