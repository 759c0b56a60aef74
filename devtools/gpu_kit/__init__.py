"""Kits that run measurements on a GPU machine without network: a folder that is built here and copied there.

Such a machine has Linux on x86-64, torch for its GPU, and what else people keep beside it (a kit says what is lacking);
the kit brings the rest: this checkout's own code, the needed files of the ComfyUI that devtools/comfyui/install.py
prepares, and wheels. ComfyUI is under the GPL: everybody builds a kit of their own, and nothing of one is committed.
"""
