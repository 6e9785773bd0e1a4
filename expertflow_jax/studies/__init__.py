"""One folder or file per question. Studies see everything; nothing imports a study."""
