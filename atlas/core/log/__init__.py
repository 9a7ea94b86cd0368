"""The log: an append-only, hash-chained store of records, and the engines that keep it."""
