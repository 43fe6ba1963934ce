"""Everything that touches nnU-Net's training: trainers, their names, and how nnU-Net finds them."""
