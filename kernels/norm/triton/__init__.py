"""The normalizations in Triton. Imported only when a GPU tensor needs them."""
