-- How many rows a call of the model may have to take no longer than PYFUNQ_BATCH_MAX_SECONDS, as workers measured; null: nobody
-- has.
ALTER TABLE resolution ADD COLUMN call_rows integer;
