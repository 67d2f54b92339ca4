"""Networks, and what dfkd knows about them: architectures, layers, outputs, files on disk, and the frozen teacher.

Imports: common. Begin with `classifier` (a network with its card), then `access` (what a teacher lets one do) and
`teacher` (the frozen network with its modelled layer).
"""
