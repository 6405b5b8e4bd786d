"""What the pack knows about TurboDiffusion. Everything outside `host/` can be imported and tested without ComfyUI."""
