"""EDSelect: which two of the target's hidden states a drafter taps (paper, section 3.2).

Numbers of hidden states are the paper's throughout the room: 0 is the embedding output, i the
output of decoder layer i - 1. ``target_layer_ids`` appear where a person or a file meets them.
Importing the package imports no torch.
"""
