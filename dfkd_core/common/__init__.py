"""What every other folder uses: seeded draws, devices, memory, digests, pixels.

Imports: nothing of dfkd but the root modules (errors, progress, sections). Begin with `seeding`: every random draw has
an address there; `pixels` is the one codec between stored images and floats.
"""
