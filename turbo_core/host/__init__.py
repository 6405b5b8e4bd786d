"""The modules that import ComfyUI: subclasses of its Wan network, model and guider, and what loads, patches, samples
and decodes."""
