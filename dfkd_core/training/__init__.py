"""The epoch loop that teacher and student share, with augmentation, averaged weights and checkpoints.

Imports: common. Begin with `loop`.
"""
