"""A ledger of doubly signed receipts: a replicated set without a chain of blocks. See README.md."""
