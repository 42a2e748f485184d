"""Speculation: drafts of what will probably come, verified in the pass that would run anyway."""
