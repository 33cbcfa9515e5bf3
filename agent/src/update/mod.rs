//! Moves a slot from one bundle to the next and back: a pure machine and the shell that performs it.
