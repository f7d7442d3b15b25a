"""Which region a decision rests on: occlusion, class activation maps, and how faithful they are."""
