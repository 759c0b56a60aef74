"""A small image model that is really trained, and a style to teach it.

Run the scripts as modules from the repository's root, with ComfyUI's Python: `python -m demo.train_base`.
"""
