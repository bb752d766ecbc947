"""One self-contained HTML page about a run: what it reads, draws, embeds and writes."""
