"""Training a student on a transfer set.

Imports: common, models, training, transfer_set. Begin with `run`, then `steps` (one step: batch, loss, memory) and
`soft_labels` (the loss between two networks' outputs).
"""
