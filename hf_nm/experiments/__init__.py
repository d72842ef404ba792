"""What the recipes share: options, rows of text, metrics, results, comparisons."""
