"""One video on several devices: Ulysses sequence parallelism for sparse-linear attention.

Each rank has all weights and a share of the tokens. Self-attention needs every token but treats each head alone, so
ranks exchange tokens for heads before it and heads for tokens after it (arXiv:2309.14509). ComfyUI's process is rank 0;
the others are Ray actors."""
