"""What the recipes share: everything of a run that is not its data, its model or its score."""
