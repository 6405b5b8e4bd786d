"""Camera control of LingBot-World: paths, and what its network is given of them."""
