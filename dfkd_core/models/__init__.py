"""Networks: architectures, layers, outputs, files on disk, and the frozen teacher.

Imports: common. Start with `classifier` (a network with its card), then `access` (what a teacher allows) and
`teacher` (the frozen network with its modelled layer).
"""
