-- A CRC-32 of each row's own columns (`checksums.py`). It is null in rows that an earlier version wrote, until the
-- first `everloop verify` that finds the store whole.
ALTER TABLE records ADD COLUMN crc BIGINT;
ALTER TABLE revisions ADD COLUMN crc BIGINT;
ALTER TABLE events ADD COLUMN crc BIGINT;
ALTER TABLE metrics ADD COLUMN crc BIGINT;
ALTER TABLE points ADD COLUMN crc BIGINT;
