"""Stable Diffusion WebUI Forge; Forge Neo, which goes on where it ended; reForge and Forge classic, which go on from
its beginnings."""
