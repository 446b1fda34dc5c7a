"""Real language: a textbook, a pretrained target, a teacher's pairs, and the book's authors' own questions."""
