"""What the recipes share: runs, options, rows of text, metrics, results, comparisons."""
