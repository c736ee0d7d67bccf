"""Distribution-Balanced Loss (Wu et al., ECCV 2020) for Keras."""
