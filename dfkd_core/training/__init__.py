"""The epoch loop that teacher and student share, with augmentation and checkpoints.

Imports: common. Begin with `loop`.
"""
