"""The starter model and the corpus it is trained on; runs in the ML environment."""
