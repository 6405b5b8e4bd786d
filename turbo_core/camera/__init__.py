"""Camera control of LingBot-World: camera paths, and the embedding of them that its network takes."""
