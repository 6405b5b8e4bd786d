"""Getting model files from Hugging Face into ComfyUI's folders."""
