"""Stages that vLLM serves on, and that train the very weights it serves.

Only here is vllm imported. Importing this package is cheap; its modules bring in torch and vllm.
"""
