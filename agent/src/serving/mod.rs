//! Answers clients: the Open Inference Protocol over HTTP, and the table of slots behind it.
