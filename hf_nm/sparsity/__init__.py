"""What N:M is, on tensors alone: pattern, mask, divergence (SAD), check, bits."""
