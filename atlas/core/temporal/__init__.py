"""What `atlas.core.temporal_store` is made of: timelines, their events and states, and their files."""
