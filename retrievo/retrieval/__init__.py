"""Layer 2: embeddings, FAISS indexes, BM25, fusion."""
