"""The ledger's rules: an append-only Merkle log whose entries cannot be denied later. Pure; no I/O."""
