-- The caller's address and port as its socket says; empty for what the control plane does by itself. NULL in records that
-- were written before there was this column: their hash does not cover it.
ALTER TABLE audit ADD COLUMN peer TEXT;
