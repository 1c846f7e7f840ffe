"""Inference: launches vLLM, keeps adapters loaded and verified, generates in batch."""
