"""`cli.py batch`: one API workflow over a table of jobs, on running ComfyUI servers or on workers that Ray places.

table -> plan (workflow, check) -> dispatch over workers (server, Ray) -> results + manifest -> contact sheet. No node
imports it."""
