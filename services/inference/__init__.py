"""Model engine: launches vLLM, keeps the wanted adapters loaded and checked, generates in batch."""
