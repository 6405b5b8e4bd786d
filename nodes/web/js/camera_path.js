// TurboDiffusion Camera Path shows only the inputs of the chosen source. The others keep their values.
import { app } from "../../../scripts/app.js";

const INPUTS = {
    actions: ["actions", "fov", "max_length"],
    preset: ["preset", "amount", "ease", "length", "fov"],
    folder: ["folder", "convention", "fov", "max_length"],
};

function showInputsOfSource(node) {
    const source = node.widgets?.find(({ name }) => name === "source");
    const shown = INPUTS[source?.value];
    if (!shown) return;
    const isLinked = name => node.inputs?.some(input => input.name === name && input.link != null);
    const isAnySource = isLinked("source");
    for (const widget of node.widgets) {
        if (!Object.values(INPUTS).flat().includes(widget.name)) continue;
        const isHidden = !isAnySource && !shown.includes(widget.name) && !isLinked(widget.name);
        widget.hidden = isHidden;  // the canvas
        widget.options.hidden = isHidden;  // Nodes 2.0, which draws anew when the array changes
    }
    node.widgets.splice(0, node.widgets.length, ...node.widgets);
    node.setSize([node.size[0], node.computeSize()[1]]);
    node.setDirtyCanvas?.(true, true);
}

app.registerExtension({
    name: "TurboDiffusion.CameraPath",
    nodeCreated(node) {
        if (node.comfyClass !== "TurboDiffusionCameraPath") return;
        const source = node.widgets.find(({ name }) => name === "source");
        const { callback } = source;
        source.callback = function (...values) {
            callback?.apply(this, values);
            showInputsOfSource(node);
        };
        const { onConnectionsChange } = node;
        node.onConnectionsChange = function (...values) {
            onConnectionsChange?.apply(this, values);
            showInputsOfSource(node);
        };
        showInputsOfSource(node);
    },
    loadedGraphNode(node) {
        if (node.comfyClass === "TurboDiffusionCameraPath") showInputsOfSource(node);
    },
});
