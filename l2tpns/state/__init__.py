"""Saved state: records, the journal that writes them, and how a start restores them."""
