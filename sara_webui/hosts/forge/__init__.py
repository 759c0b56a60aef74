"""Stable Diffusion WebUI Forge, and Forge Neo, which goes on where it ended."""
