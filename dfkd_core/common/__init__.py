"""Shared tools of all other folders: seeded draws, devices, memory, digests, pixels.

Imports: only the root modules of dfkd (errors, progress, sections). Start with `seeding`: every random draw has an
address there. `pixels` is the single codec between stored images and floats.
"""
