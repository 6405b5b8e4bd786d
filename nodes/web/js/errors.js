// The sentence of an error of ours as a toast: the page's own says only that a node threw an error.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";

const OURS = "TurboDiffusion.";  // turbo_core/errors.py

app.registerExtension({
    name: "TurboDiffusion.Errors",
    setup() {
        api.addEventListener("execution_error", ({ detail }) => {
            if (!detail.exception_type?.startsWith(OURS)) return;
            const title = LiteGraph.registered_node_types[detail.node_type]?.title ?? detail.node_type;
            app.extensionManager.toast.add({
                severity: "error", summary: detail.exception_message.trim(), detail: title, life: 20_000 });
        });
    },
});
