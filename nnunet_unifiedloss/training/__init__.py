"""Integration with nnU-Net's training: trainers, their names, and their look-up."""
