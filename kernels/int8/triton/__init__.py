"""Int8 linear layers in Triton. Imported only when a GPU tensor needs them."""
