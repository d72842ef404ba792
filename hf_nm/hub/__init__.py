"""Publishing: pushes to the Hub, the model card, scores, figures."""
