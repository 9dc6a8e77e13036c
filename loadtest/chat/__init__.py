"""How well the chat answers: a set of questions in Portuguese and English, asked of a running service and graded."""
