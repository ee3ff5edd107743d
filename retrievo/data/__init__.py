"""Layer 1: the shared tables (corpus, queries, qrels, run, negatives), their ids and the ordering rule."""
