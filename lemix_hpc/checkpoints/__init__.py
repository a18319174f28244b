"""Saved training state: its files, their manifest, what may be taken up again, and weights as others read them.

Listing and checking need no torch.
"""
