"""Layer 3: embeddings, FAISS indexes, BM25, one searcher for all of them, fusion."""
