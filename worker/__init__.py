"""The program that takes jobs out: claims, predicts, records."""
