"""The parts that know ComfyUI: its Wan classes extended, its loader mirrored, its guider taught a second expert."""
