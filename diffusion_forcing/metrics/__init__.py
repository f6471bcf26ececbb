"""Scores as functions of arrays and tensors, which are never edited, and the networks that LPIPS, FID and FVD need."""
