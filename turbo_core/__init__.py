"""What the pack knows about TurboDiffusion. Everything outside `host/` imports and tests without ComfyUI."""
