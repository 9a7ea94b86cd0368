"""Knowledge: documents in, the right passage out.

Everything here needs ``pip install 'atlas[knowledge]'``; names are loaded when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from atlas._exports import exported

if TYPE_CHECKING:
    from atlas.knowledge.chroma import ChromaStore as ChromaStore
    from atlas.knowledge.chunking import Chunker as Chunker
    from atlas.knowledge.chunking import CodeChunker as CodeChunker
    from atlas.knowledge.chunking import FixedChunker as FixedChunker
    from atlas.knowledge.chunking import SemanticChunker as SemanticChunker
    from atlas.knowledge.chunking import SentenceChunker as SentenceChunker
    from atlas.knowledge.chunking import StructureChunker as StructureChunker
    from atlas.knowledge.documents import Chunk as Chunk
    from atlas.knowledge.documents import Document as Document
    from atlas.knowledge.documents import Heading as Heading
    from atlas.knowledge.embedding import CallableEmbedder as CallableEmbedder
    from atlas.knowledge.embedding import Embedder as Embedder
    from atlas.knowledge.embedding import OllamaEmbedder as OllamaEmbedder
    from atlas.knowledge.embedding import OpenAIEmbedder as OpenAIEmbedder
    from atlas.knowledge.expansion import ProviderExpander as ProviderExpander
    from atlas.knowledge.filters import Filter as Filter
    from atlas.knowledge.filters import parse_filter as parse_filter
    from atlas.knowledge.hits import DocumentVersion as DocumentVersion
    from atlas.knowledge.hits import Hit as Hit
    from atlas.knowledge.ingest import Ingested as Ingested
    from atlas.knowledge.ingest import IngestProgress as IngestProgress
    from atlas.knowledge.knowledge import Knowledge as Knowledge
    from atlas.knowledge.loading import Loader as Loader
    from atlas.knowledge.minilm import MiniLM as MiniLM
    from atlas.knowledge.options import Searching as Searching
    from atlas.knowledge.options import SearchOptions as SearchOptions
    from atlas.knowledge.retrieval import Explanation as Explanation
    from atlas.knowledge.retrieval import QueryExpander as QueryExpander
    from atlas.knowledge.retrieval import Ranking as Ranking
    from atlas.knowledge.retrieval import Reranker as Reranker
    from atlas.knowledge.store import CollectionInfo as CollectionInfo
    from atlas.knowledge.store import Entry as Entry
    from atlas.knowledge.store import KnowledgeStore as KnowledgeStore
    from atlas.knowledge.store import Match as Match
    from atlas.knowledge.store import MemoryStore as MemoryStore

__getattr__, __dir__ = exported(
    __name__,
    {
        "atlas.knowledge.chroma": ("ChromaStore",),
        "atlas.knowledge.chunking": (
            "Chunker",
            "CodeChunker",
            "FixedChunker",
            "SemanticChunker",
            "SentenceChunker",
            "StructureChunker",
        ),
        "atlas.knowledge.documents": ("Chunk", "Document", "Heading"),
        "atlas.knowledge.embedding": (
            "CallableEmbedder",
            "Embedder",
            "OllamaEmbedder",
            "OpenAIEmbedder",
        ),
        "atlas.knowledge.expansion": ("ProviderExpander",),
        "atlas.knowledge.filters": ("Filter", "parse_filter"),
        "atlas.knowledge.hits": ("DocumentVersion", "Hit"),
        "atlas.knowledge.ingest": ("IngestProgress", "Ingested"),
        "atlas.knowledge.knowledge": ("Knowledge",),
        "atlas.knowledge.loading": ("Loader",),
        "atlas.knowledge.minilm": ("MiniLM",),
        "atlas.knowledge.options": ("SearchOptions", "Searching"),
        "atlas.knowledge.retrieval": ("Explanation", "QueryExpander", "Ranking", "Reranker"),
        "atlas.knowledge.store": (
            "CollectionInfo",
            "Entry",
            "KnowledgeStore",
            "Match",
            "MemoryStore",
        ),
    },
)

__all__ = [
    "CallableEmbedder",
    "ChromaStore",
    "Chunk",
    "Chunker",
    "CodeChunker",
    "CollectionInfo",
    "Document",
    "DocumentVersion",
    "Embedder",
    "Entry",
    "Explanation",
    "Filter",
    "FixedChunker",
    "Heading",
    "Hit",
    "IngestProgress",
    "Ingested",
    "Knowledge",
    "KnowledgeStore",
    "Loader",
    "Match",
    "MemoryStore",
    "MiniLM",
    "OllamaEmbedder",
    "OpenAIEmbedder",
    "ProviderExpander",
    "QueryExpander",
    "Ranking",
    "Reranker",
    "SearchOptions",
    "Searching",
    "SemanticChunker",
    "SentenceChunker",
    "StructureChunker",
    "parse_filter",
]
