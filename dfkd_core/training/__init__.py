"""The epoch loop shared by teacher and student, with augmentation and checkpoints.

Imports: common. Begin with `loop`.
"""
