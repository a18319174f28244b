"""Stages that compute with Hugging Face decoder layers in PyTorch and train through DeepSpeed.

Importing this package is cheap; `lemix_hpc.engines.torch.build` brings in torch and transformers.
"""
